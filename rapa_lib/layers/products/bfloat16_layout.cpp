// How kernel matrices, patches and gradients in bfloat16 are laid out for matrix_units.cpp, and how
// sums come back. Included, not compiled by itself.

#pragma once

#include "matrix_units.cpp"
#include "plan.cpp"

#if defined(__AVX512BF16__)

namespace {

constexpr int AT_ONCE = 2 * SIDE;  // patches that are gathered for one product
constexpr int STEPS_AT_ONCE = 6;   // steps along a patch that are gathered for one product

// What a product asks of the plan beside where patches are: numbers of squares.
struct Squares {
    int64_t steps_in;     // along a patch, when that is summed over
    int64_t steps_out;    // along the outputs, when they are summed over
    int64_t outputs;      // along the outputs as columns or rows
    int64_t per_stretch;  // along a stretch as columns
    int64_t inputs;       // along a patch as columns: each stretch is filled up

    template <class T>
    explicit Squares(const Plan<T>& plan)
        : steps_in(parts_of(plan.n_inputs, DEPTH)),
          steps_out(parts_of(plan.group_outputs, DEPTH)),
          outputs(parts_of(plan.group_outputs, SIDE)),
          per_stretch(parts_of(plan.length, SIDE)),
          inputs(plan.n_stretches * per_stretch) {}
};

// Configured tiles as long as a thread works with them.
class WithTiles {
public:
    explicit WithTiles(int64_t units) : configured(units == MATRIX) {
        if (configured) configure_tiles();
    }
    ~WithTiles() {
        if (configured) release_tiles();
    }
    WithTiles(const WithTiles&) = delete;

private:
    bool configured;
};

// A kernel matrix (inputs × outputs) as squares of B: [step along inputs][square of outputs].
template <class T>
void lay_out_forward(const Plan<T>& plan, const bf16* matrix, bf16* to) {
    const Squares squares(plan);
    const int64_t width = plan.layer.out_channels;
    for (int64_t step = 0; step < squares.steps_in; step++)
        for (int64_t square = 0; square < squares.outputs; square++) {
            const __mmask16 columns = first_of_16(plan.group_outputs - square * SIDE);
            for (int64_t k = step * DEPTH; k < (step + 1) * DEPTH; k += 2, to += 2 * SIDE) {
                const bf16* from = matrix + k * width + square * SIDE;
                const __m256i first = _mm256_maskz_loadu_epi16(k < plan.n_inputs ? columns : 0, from);
                const __m256i second = _mm256_maskz_loadu_epi16(
                    k + 1 < plan.n_inputs ? columns : 0, from + width);
                _mm512_storeu_si512(to, interleaved(first, second));
            }
        }
}

// The transposed kernel matrix as squares of B: [square of a stretch][step along outputs].
template <class T>
void lay_out_backward(const Plan<T>& plan, const bf16* matrix, bf16* to) {
    const Squares squares(plan);
    const int64_t width = plan.layer.out_channels;
    for (int64_t square = 0; square < squares.inputs; square++) {
        const int64_t j = square % squares.per_stretch * SIDE;
        const int64_t k = square / squares.per_stretch * plan.length + j;
        const int64_t rows = std::min<int64_t>(SIDE, plan.length - j);
        for (int64_t step = 0; step < squares.steps_out; step++, to += SQUARE_B) {
            const __mmask32 columns = first_of_32(plan.group_outputs - step * DEPTH);
            __m512i words[SIDE];
#pragma GCC unroll 16
            for (int64_t r = 0; r < SIDE; r++)
                words[r] = _mm512_maskz_loadu_epi16(r < rows ? columns : 0,
                                                    matrix + (k + r) * width + step * DEPTH);
            transpose_16(words);
#pragma GCC unroll 16
            for (int64_t r = 0; r < SIDE; r++) _mm512_storeu_si512(to + r * DEPTH, words[r]);
        }
    }
}

// Patches as rows of squares of A, a few steps at a time: blocks of equal size, so that what is
// multiplied stays in the first cache, the kernel matrix's part included.
class PatchRows {
public:
    int64_t n_blocks, row;  // row: bytes, an odd number of cache lines, which rows then share evenly

    explicit PatchRows(const Plan<bf16>& plan, const Squares& squares)
        : n_blocks(parts_of(squares.steps_in, STEPS_AT_ONCE)), steps_in(squares.steps_in) {
        row = (parts_of(steps_in, n_blocks) | 1) * 64;
        narrow = plan.length <= SIDE;
        for (int64_t block = 0; block < n_blocks; block++) {
            first_piece.push_back(pieces.size());
            const int64_t begin = first_step(block) * DEPTH;
            const int64_t end = std::min(first_step(block + 1) * DEPTH, plan.n_inputs);
            for (int64_t k = begin; k < end;) {
                const int64_t s = k / plan.length, from = k % plan.length;
                const int64_t n = std::min(plan.length - from, end - k);
                pieces.push_back({plan.stretches[s] + from, k - begin, n});
                k += n;
            }
        }
        first_piece.push_back(pieces.size());
    }

    // Ask for a block of a patch before it is gathered.
    void prefetch(int64_t block, const bf16* patch) const {
        for (int64_t i = first_piece[block]; i < first_piece[block + 1]; i++)
            for (int64_t k = 0; k < pieces[i].n + DEPTH - 1; k += DEPTH)
                __builtin_prefetch(patch + pieces[i].from + std::min(k, pieces[i].n - 1));
    }

    int64_t first_step(int64_t block) const { return block * steps_in / n_blocks; }
    int64_t size() const { return AT_ONCE * row / 2 + DEPTH; }  // numbers of memory for gather

    // Copy a block of n patches. Each copy is of whole vectors; what is too much the next one
    // overwrites, and the last fills up its vector with zeros. Zeros beyond it come first.
    void gather(int64_t block, const bf16* const* patches, int64_t n, bf16* rows) const {
        const Piece* begin = pieces.data() + first_piece[block];
        const Piece* last = pieces.data() + first_piece[block + 1] - 1;
        const int64_t filled = (first_step(block + 1) - first_step(block)) * DEPTH;
        const bool ragged = last->at + last->n < filled;
        for (int64_t r = 0; r < n; r++, rows += row / 2) {
            if (ragged) _mm512_storeu_si512(rows + filled - DEPTH, _mm512_setzero_si512());
            if (narrow) {
                for (const Piece* piece = begin; piece < last; piece++)
                    _mm256_storeu_si256(
                        reinterpret_cast<__m256i*>(rows + piece->at),
                        _mm256_loadu_si256(
                            reinterpret_cast<const __m256i*>(patches[r] + piece->from)));
            } else {
                for (const Piece* piece = begin; piece < last; piece++)
                    for (int64_t k = 0; k < piece->n; k += DEPTH)
                        _mm512_storeu_si512(rows + piece->at + k,
                                            _mm512_loadu_si512(patches[r] + piece->from + k));
            }
            int64_t k = 0;
            for (; k + DEPTH <= last->n; k += DEPTH)
                _mm512_storeu_si512(rows + last->at + k,
                                    _mm512_loadu_si512(patches[r] + last->from + k));
            if (k < last->n)
                _mm512_storeu_si512(rows + last->at + k,
                                    _mm512_maskz_loadu_epi16(first_of_32(last->n - k),
                                                             patches[r] + last->from + k));
        }
    }

private:
    struct Piece {
        int64_t from, at, n;  // of the patch, in the row, how many numbers
    };
    int64_t steps_in;
    bool narrow;
    std::vector<Piece> pieces;
    std::vector<int64_t> first_piece;
};

inline void copy_numbers(const bf16* from, int64_t n, bf16* to) {
    for (; n >= 32; n -= 32, from += 32, to += 32) {
        asm volatile("");  // else the compiler calls memmove, for a vector or two
        _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    }
    if (n > 0) {
        const __mmask32 mask = first_of_32(n);
        _mm512_mask_storeu_epi16(to, mask, _mm512_maskz_loadu_epi16(mask, from));
    }
}

inline void store_rounded(const float* low, const float* high, int64_t n, bf16* to) {
    const __m512i numbers = rounded(_mm512_loadu_ps(low), _mm512_loadu_ps(high));
    if (n >= 32)
        _mm512_storeu_si512(to, numbers);
    else
        _mm512_mask_storeu_epi16(to, first_of_32(n), numbers);
}

void unpad_rounded(const Plan<float>& plan, float* padded, int64_t begin, int64_t count,
                   bf16* images) {
    const Layer& l = plan.layer;
    const int64_t n = l.width * l.channels;
    for (int64_t i = 0; i < count; i++)
        for (int64_t y = 0; y < l.height; y++) {
            const float* from = padded_row(l, padded, plan.image_size, i, y);
            bf16* to = images + ((begin + i) * l.height + y) * n;
            int64_t k = 0;
            for (; k + 32 <= n; k += 32) store_rounded(from + k, from + k + 16, 32, to + k);
            if (k == n) continue;
            const __m512i numbers =
                rounded(_mm512_maskz_loadu_ps(first_of_16(n - k), from + k),
                        _mm512_maskz_loadu_ps(first_of_16(n - k - 16), from + k + 16));
            _mm512_mask_storeu_epi16(to + k, first_of_32(n - k), numbers);
        }
}

// Squares of sums (outputs × inputs) as rows of a kernel matrix (inputs × outputs), rounded.
void store_sums(const Plan<bf16>& plan, const Squares& squares, const float* sums, int64_t first,
                int64_t last, bf16* matrix) {
    const int64_t width = plan.layer.out_channels;
    for (int64_t k = first; k < last; k++, sums += squares.outputs * SQUARE_C) {
        const int64_t j = k % squares.per_stretch * SIDE;
        const int64_t rows = std::min<int64_t>(SIDE, plan.length - j);
        bf16* to = matrix + (k / squares.per_stretch * plan.length + j) * width;
        for (int64_t o = 0; o < squares.outputs; o += 2) {
            __m512i halves[2][SIDE];
            for (int64_t half = 0; half < 2; half++) {
                const bool there = o + half < squares.outputs;
                for (int64_t r = 0; r < SIDE; r++)
                    halves[half][r] =
                        there ? _mm512_loadu_si512(sums + (o + half) * SQUARE_C + r * SIDE)
                              : _mm512_setzero_si512();
                transpose_16(halves[half]);
            }
            const __mmask32 mask = first_of_32(plan.group_outputs - o * SIDE);
            for (int64_t r = 0; r < rows; r++)
                _mm512_mask_storeu_epi16(to + r * width + o * SIDE, mask,
                                         rounded(_mm512_castsi512_ps(halves[0][r]),
                                                 _mm512_castsi512_ps(halves[1][r])));
        }
    }
}

}  // namespace

#endif
