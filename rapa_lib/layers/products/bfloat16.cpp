// The tiled convolution's three products in bfloat16 on a CPU, summed in float32; see operators.py for
// their meaning and matrix_units.cpp for what multiplies.
//
// Patches of a tile are gathered 32 at a time into squares; so are their gradients. Kernel matrices
// are laid out anew for each product, which costs little: each is used for many patches. What is
// summed is rounded to bfloat16 once, at the end.
//
// Threads own images (forward, grad_input) or kernels (grad_weight), as in kernels.cpp.

#include "matrix_units.cpp"
#include "plan.cpp"

#if defined(__AVX512BF16__)

namespace {

constexpr int AT_ONCE = 2 * SIDE;  // patches that are gathered for one product

inline int64_t even_lines(int64_t numbers) {
    // Bytes of a row that holds them: an odd number of cache lines, which rows then share evenly.
    return (parts_of(numbers, DEPTH) | 1) * 64;
}

// What a product asks of the plan beside where patches are.
struct Squares {
    int64_t steps_in;      // squares along a patch, when that is summed over
    int64_t steps_out;     // the same along the outputs
    int64_t outputs;       // squares along the outputs as columns or rows
    int64_t per_stretch;   // squares along a stretch as columns
    int64_t inputs;        // squares along a patch as columns: each stretch is filled up

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

template <class T>
struct Aligned {  // memory that begins at a cache line, zeroed
    std::vector<T> memory;
    T* data;

    explicit Aligned(int64_t n) : memory(n + 64 / sizeof(T)) {
        data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    }
    Aligned(const Aligned&) = delete;
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
                _mm512_storeu_si512(to, interleaved(_mm512_inserti64x4(
                                            _mm512_castsi256_si512(first), second, 1)));
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

inline void copy_numbers(const bf16* from, int64_t n, bf16* to) {
    for (; n >= 32; n -= 32, from += 32, to += 32)
        _mm512_storeu_si512(to, _mm512_loadu_si512(from));
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

void forward(const Layer& l, const bf16* x, const bf16* matrices, const bf16* bias,
             const int64_t* assignment, bf16* y) {
    const Plan<bf16> plan(l);
    const Squares squares(plan);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<bf16> matrix_of(plan, matrices, n_chunks,
                                   squares.steps_in * squares.outputs * SQUARE_B, lay_out_forward);
    const int64_t row = even_lines(plan.n_inputs);
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        std::vector<bf16> padded(chunk * plan.image_size), buffer;
        // One column more than needed: products come in pairs of squares.
        Aligned<float> start((squares.outputs + 1) * SIDE), sums(AT_ONCE * AT_ONCE);
        Aligned<bf16> rows(AT_ONCE * row / 2);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            bf16* out = y + begin * plan.n_patches * l.out_channels;
            pad(plan, x, begin, count, padded.data());
            sorted.sort(l, assignment, begin, count);
            if (sorted.first[l.n_tiles] < count * plan.n_patches)
                std::fill_n(out, count * plan.n_patches * l.out_channels, bf16(0));
            for (int64_t part = 0; part < l.n_tiles * l.groups; part++) {
                const int64_t t = part / l.groups, group = part % l.groups;
                const int64_t end = sorted.first[t + 1], first_out = group * plan.group_outputs;
                if (sorted.first[t] == end) continue;
                const bf16* matrix = matrix_of(t, buffer, group);
                for (int64_t o = 0; bias && o < plan.group_outputs; o++) {
                    const uint32_t bits = uint32_t(bias[t * l.out_channels + first_out + o]) << 16;
                    std::memcpy(start.data + o, &bits, sizeof bits);
                }
                for (int64_t i = sorted.first[t]; i < end; i += AT_ONCE) {
                    const int64_t n = std::min<int64_t>(AT_ONCE, end - i);
                    for (int64_t r = 0; r < n; r++) {
                        const bf16* patch = plan.patch(padded.data(), sorted.ids[i + r]) +
                                            group * plan.group_channels;
                        bf16* to = rows.data + r * row / 2;
                        for (int64_t s = 0; s < plan.n_stretches; s++, to += plan.length)
                            copy_numbers(patch + plan.stretches[s], plan.length, to);
                    }
                    for (int64_t square = 0; square < squares.outputs; square += 2) {
                        const int64_t columns = std::min<int64_t>(2, squares.outputs - square);
                        multiply({.a = rows.data, .a_row = row, .a_step = 64, .a_square = SIDE * row,
                                  .b = matrix + square * SQUARE_B,
                                  .b_step = squares.outputs * SQUARE_B * 2, .b_square = SQUARE_B * 2,
                                  .steps = squares.steps_in,
                                  .c = sums.data, .c_row = 128, .c_square_row = SIDE * 128,
                                  .c_square_column = 64,
                                  .start = bias ? start.data + square * SIDE : nullptr,
                                  .start_row = 0, .start_square_row = 0, .start_square_column = 64},
                                 parts_of(n, SIDE), columns, l.units);
                        for (int64_t r = 0; r < n; r++)
                            store_rounded(sums.data + r * 32, sums.data + r * 32 + 16,
                                          plan.group_outputs - square * SIDE,
                                          out + sorted.ids[i + r] * l.out_channels + first_out +
                                              square * SIDE);
                    }
                }
            }
        }
    }
}

// Add square (s, j) of gradients of patches, row by row, to the padded images: patches overlap.
inline void scatter(const float* sums, int64_t n, float* const* patches, int64_t offset,
                    int64_t width) {
    if (width >= SIDE) {
        for (int64_t r = 0; r < n; r++) {
            float* to = patches[r] + offset;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(sums + r * 32)));
        }
        return;
    }
    const __mmask16 mask = first_of_16(width);
    for (int64_t r = 0; r < n; r++) {
        float* to = patches[r] + offset;
        _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to),
                                                      _mm512_loadu_ps(sums + r * 32)));
    }
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

// The plan of bfloat16 kernel matrices beside that of float32 sums: Prepared wants its own type.
void grad_input(const Layer& l, const bf16* grad, const bf16* matrices, const int64_t* assignment,
                bf16* grad_x) {
    const Plan<float> plan(l);
    const Plan<bf16> of_matrices(l);
    const Squares squares(plan);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<bf16> matrix_of(of_matrices, matrices, n_chunks,
                                   squares.inputs * squares.steps_out * SQUARE_B, lay_out_backward);
    const int64_t row = even_lines(plan.group_outputs);
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        std::vector<bf16> buffer;
        std::vector<float> padded(chunk * plan.image_size);
        Aligned<float> sums(AT_ONCE * AT_ONCE);
        Aligned<bf16> rows(AT_ONCE * row / 2);
        float* patches[AT_ONCE];
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            const bf16* out = grad + begin * plan.n_patches * l.out_channels;
            std::fill(padded.begin(), padded.end(), 0.0f);
            sorted.sort(l, assignment, begin, count);
            for (int64_t part = 0; part < l.n_tiles * l.groups; part++) {
                const int64_t t = part / l.groups, group = part % l.groups;
                const int64_t end = sorted.first[t + 1];
                if (sorted.first[t] == end) continue;
                const bf16* matrix = matrix_of(t, buffer, group);
                for (int64_t i = sorted.first[t]; i < end; i += AT_ONCE) {
                    const int64_t n = std::min<int64_t>(AT_ONCE, end - i);
                    for (int64_t r = 0; r < n; r++) {
                        patches[r] = const_cast<float*>(
                            plan.patch(padded.data(), sorted.ids[i + r]) +
                            group * plan.group_channels);
                        copy_numbers(out + sorted.ids[i + r] * l.out_channels +
                                         group * plan.group_outputs,
                                     plan.group_outputs, rows.data + r * row / 2);
                    }
                    for (int64_t square = 0; square < squares.inputs; square += 2) {
                        const int64_t columns = std::min<int64_t>(2, squares.inputs - square);
                        const int64_t b_square = squares.steps_out * SQUARE_B;
                        multiply({.a = rows.data, .a_row = row, .a_step = 64, .a_square = SIDE * row,
                                  .b = matrix + square * b_square, .b_step = SQUARE_B * 2,
                                  .b_square = b_square * 2, .steps = squares.steps_out,
                                  .c = sums.data, .c_row = 128, .c_square_row = SIDE * 128,
                                  .c_square_column = 64, .start = nullptr, .start_row = 0,
                                  .start_square_row = 0, .start_square_column = 0},
                                 parts_of(n, SIDE), columns, l.units);
                        for (int64_t k = square; k < square + columns; k++) {
                            const int64_t j = k % squares.per_stretch * SIDE;
                            scatter(sums.data + (k - square) * SIDE, n, patches,
                                    plan.stretches[k / squares.per_stretch] + j, plan.length - j);
                        }
                    }
                }
            }
            unpad_rounded(plan, padded.data(), begin, count, grad_x);
        }
    }
}

// Sums of one tile's patches: squares `first` … `last` - 1 of the patch, all outputs of a group.
class TileSums {
public:
    static constexpr int STEPS = BLOCK / DEPTH;

    TileSums(const Plan<bf16>& plan, int64_t most_columns)
        : plan(plan),
          squares(plan),
          grads(squares.outputs * STEPS * SIDE * DEPTH),
          patches(STEPS * most_columns * SQUARE_B) {}

    // sums: [square of the patch][square of outputs] of C; `fresh`: nothing is in them yet.
    void add(const bf16* padded, const bf16* out, const Sorted& sorted, int64_t tile, int64_t group,
             int64_t first, int64_t last, bool fresh, float* sums, float* sum_bias) {
        const Layer& l = plan.layer;
        const int64_t end = sorted.first[tile + 1], columns = last - first;
        out += group * plan.group_outputs;
        padded += group * plan.group_channels;
        if (fresh && sorted.first[tile] == end)
            std::fill_n(sums, columns * squares.outputs * SQUARE_C, 0.0f);
        for (int64_t i = sorted.first[tile]; i < end; i += BLOCK, fresh = false) {
            const int64_t n = std::min<int64_t>(BLOCK, end - i), steps = parts_of(n, DEPTH);
            const int32_t* ids = sorted.ids.data() + i;
            for (int64_t step = 0; step < steps; step++) {
                const int64_t left = n - step * DEPTH;
                lay_out_grads(out, ids + step * DEPTH, left, step);
                lay_out_patches(padded, ids + step * DEPTH, left, first, last, step);
            }
            if (sum_bias) add_bias(out, ids, n, sum_bias);
            for (int64_t column = 0; column < columns; column += 2)
                for (int64_t o = 0; o < squares.outputs; o += 2) {
                    float* to = sums + (column * squares.outputs + o) * SQUARE_C;
                    const int64_t next = squares.outputs * SQUARE_C * 4;
                    multiply({.a = grads.data + o * STEPS * SIDE * DEPTH, .a_row = 64,
                              .a_step = SIDE * DEPTH * 2, .a_square = STEPS * SIDE * DEPTH * 2,
                              .b = patches.data + column * SQUARE_B,
                              .b_step = columns * SQUARE_B * 2, .b_square = SQUARE_B * 2,
                              .steps = steps, .c = to, .c_row = 64, .c_square_row = SQUARE_C * 4,
                              .c_square_column = next, .start = fresh ? nullptr : to,
                              .start_row = 64, .start_square_row = SQUARE_C * 4,
                              .start_square_column = next},
                             std::min<int64_t>(2, squares.outputs - o),
                             std::min<int64_t>(2, columns - column), l.units);
                }
        }
    }

private:
    // Gradients of up to 32 patches, transposed, as squares of A: [square of outputs][step].
    void lay_out_grads(const bf16* out, const int32_t* ids, int64_t n, int64_t step) {
        alignas(64) static constexpr uint16_t EVEN[32] = {
            0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
            32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
        const __m512i even = _mm512_load_si512(EVEN);
        const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
        for (int64_t o = 0; o < plan.group_outputs; o += 32) {
            const __mmask32 mask = first_of_32(plan.group_outputs - o);
            __m512i halves[2][SIDE];
            for (int64_t half = 0; half < 2; half++) {
                for (int64_t r = 0; r < SIDE; r++) {
                    const int64_t p = half * SIDE + r;
                    halves[half][r] =
                        p < n ? _mm512_maskz_loadu_epi16(
                                    mask, out + ids[p] * plan.layer.out_channels + o)
                              : _mm512_setzero_si512();
                }
                transpose_16(halves[half]);
            }
            // A word of 32 bits now holds two neighbouring outputs of a patch.
            for (int64_t r = 0; r < SIDE && o + 2 * r < squares.outputs * SIDE; r++) {
                bf16* to = grads.data +
                           (((o + 2 * r) / SIDE * STEPS + step) * SIDE + 2 * r % SIDE) * DEPTH;
                _mm512_storeu_si512(
                    to, _mm512_permutex2var_epi16(halves[0][r], even, halves[1][r]));
                _mm512_storeu_si512(
                    to + DEPTH, _mm512_permutex2var_epi16(halves[0][r], odd, halves[1][r]));
            }
        }
    }

    // Up to 32 patches as squares of B: [step][square of the patch]. What lies past the end of a
    // stretch fills columns that are not read.
    void lay_out_patches(const bf16* padded, const int32_t* ids, int64_t n, int64_t first,
                         int64_t last, int64_t step) {
        bf16* squares_of_step = patches.data + step * (last - first) * SQUARE_B;
        for (int64_t pair = 0; pair < DEPTH / 2; pair++) {
            bf16* to = squares_of_step + pair * 2 * SIDE;
            if (2 * pair >= n) {
                for (int64_t k = first; k < last; k++, to += SQUARE_B)
                    _mm512_storeu_si512(to, _mm512_setzero_si512());
                continue;
            }
            const bf16* one = plan.patch(padded, ids[2 * pair]);
            const bool alone = 2 * pair + 1 >= n;
            const bf16* other = alone ? one : plan.patch(padded, ids[2 * pair + 1]);
            const __mmask16 others = alone ? 0 : 0xffff;
            int64_t s = first / squares.per_stretch, j = first % squares.per_stretch;
            for (int64_t k = first; k < last; s++, j = 0)
                for (; j < squares.per_stretch && k < last; j++, k++, to += SQUARE_B) {
                    const int64_t from = plan.stretches[s] + j * SIDE;
                    const __m256i second = _mm256_maskz_loadu_epi16(others, other + from);
                    _mm512_storeu_si512(
                        to, interleaved(_mm512_inserti64x4(
                                _mm512_castsi256_si512(_mm256_loadu_si256(
                                    reinterpret_cast<const __m256i*>(one + from))),
                                second, 1)));
                }
        }
    }

    void add_bias(const bf16* out, const int32_t* ids, int64_t n, float* sum_bias) {
        for (int64_t o = 0; o < plan.group_outputs; o += SIDE) {
            const __mmask16 mask = first_of_16(plan.group_outputs - o);
            __m512 sum = _mm512_maskz_loadu_ps(mask, sum_bias + o);
            for (int64_t p = 0; p < n; p++) {
                const __m256i bits =
                    _mm256_maskz_loadu_epi16(mask, out + ids[p] * plan.layer.out_channels + o);
                sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(
                                             _mm512_cvtepu16_epi32(bits), 16)));
            }
            _mm512_mask_storeu_ps(sum_bias + o, mask, sum);
        }
    }

    const Plan<bf16>& plan;
    const Squares squares;
    Aligned<bf16> grads, patches;
};

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

void grad_weight(const Layer& l, const bf16* grad, const bf16* x, const int64_t* assignment,
                 bf16* grad_matrices, bf16* grad_bias) {
    const Plan<bf16> plan(l);
    const Squares squares(plan);
    const int64_t fitting = l.buffer_bytes / (plan.image_size * sizeof(bf16));
    const int64_t chunk = std::max<int64_t>(1, std::min(l.batch, fitting));
    const int64_t kernels = l.n_tiles * l.groups, outputs = plan.group_outputs;
    // Few tiles are cut by inputs, so that every thread has some to do.
    const int64_t parts = std::min(squares.inputs, parts_of(4 * l.threads, kernels));
    const int64_t most = parts_of(squares.inputs, parts);
    const int64_t size = squares.inputs * squares.outputs * SQUARE_C;
    // What several chunks add to is kept in float32 until the last.
    std::vector<float> kept(chunk < l.batch ? kernels * size : 0);
    std::vector<float> bias(l.n_tiles * l.out_channels);
    std::vector<bf16> padded(chunk * plan.image_size + SIDE);
    Sorted sorted;
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        TileSums tile_sums(plan, most);
        Aligned<float> own(kept.empty() ? most * squares.outputs * SQUARE_C : 0);
        for (int64_t begin = 0; begin < l.batch; begin += chunk) {
            const int64_t count = std::min(chunk, l.batch - begin);
            const bf16* out = grad + begin * plan.n_patches * l.out_channels;
#pragma omp for nowait
            for (int64_t i = 0; i < count; i++)
                pad(plan, x, begin + i, 1, padded.data() + i * plan.image_size);
#pragma omp single
            sorted.sort(l, assignment, begin, count);
#pragma omp for schedule(dynamic) collapse(2)
            for (int64_t i = 0; i < kernels; i++)
                for (int64_t part = 0; part < parts; part++) {
                    const int64_t t = i / l.groups, group = i % l.groups;
                    const int64_t first = part * squares.inputs / parts;
                    const int64_t last = (part + 1) * squares.inputs / parts;
                    const int64_t first_out = t * l.out_channels + group * outputs;
                    float* sums = kept.empty() ? own.data
                                               : kept.data() + i * size +
                                                     first * squares.outputs * SQUARE_C;
                    tile_sums.add(padded.data(), out, sorted, t, group, first, last, begin == 0, sums,
                                  part ? nullptr : bias.data() + first_out);
                    if (begin + count == l.batch)
                        store_sums(plan, squares, sums, first, last,
                                   grad_matrices + t * plan.n_inputs * l.out_channels +
                                       group * outputs);
                }
        }
    }
    const int64_t n = l.n_tiles * l.out_channels;
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 sums = _mm512_maskz_loadu_ps(first_of_16(n - i), bias.data() + i);
        _mm512_mask_storeu_epi16(grad_bias + i, first_of_16(n - i), rounded(sums, sums));
    }
}

}  // namespace

extern "C" {
void rapa_forward_bfloat16(const Layer* l, const uint16_t* x, const uint16_t* matrices,
                           const uint16_t* bias, const int64_t* assignment, uint16_t* y) {
    forward(*l, x, matrices, bias, assignment, y);
}
void rapa_grad_input_bfloat16(const Layer* l, const uint16_t* grad, const uint16_t* matrices,
                              const int64_t* assignment, uint16_t* grad_x) {
    grad_input(*l, grad, matrices, assignment, grad_x);
}
void rapa_grad_weight_bfloat16(const Layer* l, const uint16_t* grad, const uint16_t* x,
                               const int64_t* assignment, uint16_t* grad_matrices,
                               uint16_t* grad_bias) {
    grad_weight(*l, grad, x, assignment, grad_matrices, grad_bias);
}

// The best units that are here.
int64_t rapa_bfloat16_units() { return tiles_permitted() ? MATRIX : VECTOR; }
}

#else

extern "C" int64_t rapa_bfloat16_units() { return 0; }

#endif
