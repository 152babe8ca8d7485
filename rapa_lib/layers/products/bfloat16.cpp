// The tiled convolution's three products in bfloat16 on a CPU, summed in float32; see operators.py for
// their meaning and matrix_units.cpp for what multiplies.
//
// Patches of a tile are gathered 32 at a time into squares, and so are their gradients. Kernel
// matrices are laid out anew for each product, which costs little: each is used for many patches.
// What is multiplied at once fits the first cache, which gained more than anything else. What is
// summed is rounded to bfloat16 once, at the end.
//
// Threads own images (forward, grad_input) or kernels (grad_weight), as in kernels.cpp.

#include "bfloat16_layout.cpp"
#include "bfloat16_weight.cpp"

#if defined(__AVX512BF16__)

namespace {

// The patches of one tile that are handled at once.
constexpr int MOST_BLOCKS = BLOCK / AT_ONCE;

// Call f(t, group, first, n) for each tile and group with patches, at most `most` patches a time.
template <class F>
void for_each_kernel(const Layer& l, const Sorted& sorted, F&& f) {
    for (int64_t part = 0; part < l.n_tiles * l.groups; part++) {
        const int64_t t = part / l.groups;
        if (sorted.first[t] < sorted.first[t + 1]) f(t, part % l.groups);
    }
}

// The forward product of one thread.
class ForwardOfTile {
public:
    ForwardOfTile(const Plan<bf16>& plan, const Squares& squares, const PatchRows& rows)
        : plan(plan), squares(squares), rows(rows),
          blocks(std::max<int64_t>(1, MOST_BLOCKS * 2 / squares.outputs)),
          start((squares.outputs + 1) * SIDE),
          gathered(rows.size()),
          patches(blocks * AT_ONCE),
          sums(blocks * 2 * (squares.outputs + 1) * SQUARE_C) {}

    // bias: of the group's outputs, or null; out: of the group's first output.
    void run(const bf16* padded, const int32_t* ids, int64_t n_ids, const bf16* matrix,
             const bf16* bias, bf16* out) {
        for (int64_t o = 0; bias && o < plan.group_outputs; o++) {
            const uint32_t bits = uint32_t(bias[o]) << 16;
            std::memcpy(start.data() + o, &bits, sizeof bits);
        }
        for (int64_t i = 0; i < n_ids; i += blocks * AT_ONCE) {
            const int64_t n = std::min(blocks * AT_ONCE, n_ids - i);
            // Rows of the output lie anywhere: waiting for them took two fifths of a first layer.
            prefetch_rows<true>(plan, out, sizeof(bf16), ids + i, n);
            for (int64_t r = 0; r < n; r++) patches[r] = plan.patch(padded, ids[i + r]);
            for (int64_t part = 0; part < rows.n_blocks; part++)
                for (int64_t first = 0; first < n; first += AT_ONCE) {
                    const int64_t some = std::min<int64_t>(AT_ONCE, n - first);
                    rows.gather(part, patches.data() + first, some, gathered.data());
                    if (first + some < n)
                        prefetch(part, first + some, n);
                    else if (part + 1 < rows.n_blocks)
                        prefetch(part + 1, 0, n);
                    multiply_block(some, part, matrix, bias, first);
                }
            store(ids + i, n, out);
        }
    }

private:
    void prefetch(int64_t part, int64_t first, int64_t n) const {
        const int64_t last = std::min<int64_t>(first + AT_ONCE, n);
        for (int64_t r = first; r < last; r++) rows.prefetch(part, patches[r]);
    }

    void multiply_block(int64_t n, int64_t part, const bf16* matrix, const bf16* bias,
                        int64_t first) {
        const int64_t step = rows.first_step(part), steps = rows.first_step(part + 1) - step;
        const int64_t square_row = squares.outputs * SQUARE_C * 4;
        float* to = sums.data() + first / SIDE * squares.outputs * SQUARE_C;
        for (int64_t square = 0; square < squares.outputs; square += 2, to += 2 * SQUARE_C) {
            Multiplication m = {
                .a = gathered.data(), .a_row = rows.row, .a_step = 64, .a_square = SIDE * rows.row,
                .b = matrix + (step * squares.outputs + square) * SQUARE_B,
                .b_step = squares.outputs * SQUARE_B * 2, .b_square = SQUARE_B * 2, .steps = steps,
                .c = to, .c_row = 64, .c_square_row = square_row, .c_square_column = SQUARE_C * 4,
                .start = to, .start_row = 64, .start_square_row = square_row,
                .start_square_column = SQUARE_C * 4};
            if (part == 0) {
                m.start = bias ? start.data() + square * SIDE : nullptr;
                m.start_row = m.start_square_row = 0;
                m.start_square_column = 64;
            }
            multiply(m, parts_of(n, SIDE), std::min<int64_t>(2, squares.outputs - square),
                     plan.layer.units);
        }
    }

    void store(const int32_t* ids, int64_t n, bf16* out) const {
        for (int64_t r = 0; r < n; r++) {
            const float* row = sums.data() + r / SIDE * squares.outputs * SQUARE_C + r % SIDE * SIDE;
            bf16* to = out + ids[r] * plan.layer.out_channels;
            for (int64_t o = 0; o < plan.group_outputs; o += 32, row += 2 * SQUARE_C)
                store_rounded(row, row + SQUARE_C, plan.group_outputs - o, to + o);
        }
    }

    const Plan<bf16>& plan;
    const Squares& squares;
    const PatchRows& rows;
    int64_t blocks;
    Buffer<float> start;
    Buffer<bf16> gathered;
    std::vector<const bf16*> patches;
    Buffer<float> sums;  // [16 patches][square of outputs]
};

void forward(const Layer& l, const bf16* x, const bf16* matrices, const bf16* bias,
             const int64_t* assignment, bf16* y) {
    const Plan<bf16> plan(l);
    const Squares squares(plan);
    const PatchRows rows(plan, squares);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<bf16> matrix_of(plan, matrices, n_chunks,
                                   squares.steps_in * squares.outputs * SQUARE_B, lay_out_forward);
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        Buffer<bf16> padded(chunk * plan.image_size + DEPTH), buffer;  // copies are of whole vectors
        ForwardOfTile of_tile(plan, squares, rows);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            bf16* out = y + begin * plan.n_patches * l.out_channels;
            pad(plan, x, begin, count, padded.data());
            sorted.sort(l, assignment, begin, count);
            if (sorted.first[l.n_tiles] < count * plan.n_patches)
                std::fill_n(out, count * plan.n_patches * l.out_channels, bf16(0));
            for_each_kernel(l, sorted, [&](int64_t t, int64_t group) {
                const int64_t output = group * plan.group_outputs;
                of_tile.run(padded.data() + group * plan.group_channels,
                            sorted.ids.data() + sorted.first[t],
                            sorted.first[t + 1] - sorted.first[t], matrix_of(t, buffer, group),
                            bias ? bias + t * l.out_channels + output : nullptr, out + output);
            });
        }
    }
}

// The gradient of patches, of one thread.
class BackwardOfTile {
public:
    static constexpr int COLUMNS_AT_ONCE = 10;  // squares along a patch

    BackwardOfTile(const Plan<float>& plan, const Squares& squares)
        : plan(plan), squares(squares),
          row((squares.steps_out | 1) * 64),
          blocks(std::max<int64_t>(1, MOST_BLOCKS / squares.steps_out)),
          rows(blocks * AT_ONCE * row / 2),
          sums(COLUMNS_AT_ONCE * 2 * SQUARE_C),
          patches(blocks * AT_ONCE) {
        for (int64_t k = 0; k < squares.inputs; k++) {
            const int64_t j = k % squares.per_stretch * SIDE;
            const __mmask16 mask = first_of_16(plan.length - j);
            if (k % COLUMNS_AT_ONCE == 0) first_run.push_back(runs.size());
            if (k % COLUMNS_AT_ONCE == 0 || j == 0)
                runs.push_back({plan.stretches[k / squares.per_stretch] + j, 0, 0});
            if (mask == 0xffff)
                runs.back().whole++;
            else
                runs.back().rest = mask;
        }
        first_run.push_back(runs.size());
    }

    // grad: of the group's first output; padded images are added to.
    // More ids follow: those of the next tiles.
    void run(const bf16* grad, const int32_t* ids, int64_t n_ids, int64_t n_more,
             const bf16* matrix, float* padded) {
        for (int64_t i = 0; i < n_ids; i += blocks * AT_ONCE) {
            const int64_t n = std::min(blocks * AT_ONCE, n_ids - i);
            for (int64_t r = 0; r < n; r++) {
                patches[r] = const_cast<float*>(plan.patch(padded, ids[i + r]));
                copy_numbers(grad + ids[i + r] * plan.layer.out_channels, plan.group_outputs,
                             rows.data() + r * row / 2);
            }
            prefetch_rows<false>(plan, grad, sizeof(bf16), ids + i + n,
                                 std::min(blocks * AT_ONCE, n_ids + n_more - i - n));
            for (int64_t k = 0; k < squares.inputs; k += COLUMNS_AT_ONCE) {
                const int64_t last = std::min<int64_t>(k + COLUMNS_AT_ONCE, squares.inputs);
                for (int64_t first = 0; first < n; first += AT_ONCE) {
                    const int64_t some = std::min<int64_t>(AT_ONCE, n - first);
                    multiply_block(first, some, matrix, k, last);
                    scatter(first, some, k / COLUMNS_AT_ONCE);
                }
            }
        }
    }

private:
    void multiply_block(int64_t first, int64_t n, const bf16* matrix, int64_t k, int64_t last) {
        const int64_t b_square = squares.steps_out * SQUARE_B;
        for (int64_t column = k; column < last; column += 2)
            multiply({.a = rows.data() + first * row / 2, .a_row = row, .a_step = 64,
                      .a_square = SIDE * row, .b = matrix + column * b_square,
                      .b_step = SQUARE_B * 2, .b_square = b_square * 2, .steps = squares.steps_out,
                      .c = sums.data() + (column - k) * SIDE, .c_row = COLUMNS_AT_ONCE * 64,
                      .c_square_row = SIDE * COLUMNS_AT_ONCE * 64, .c_square_column = 64,
                      .start = nullptr, .start_row = 0, .start_square_row = 0,
                      .start_square_column = 0},
                     parts_of(n, SIDE), std::min<int64_t>(2, last - column), plan.layer.units);
    }

    struct Run {  // neighbouring inputs
        int64_t offset, whole;  // of the first in a patch; whole vectors
        __mmask16 rest;         // of one vector more
    };
    // Add sums to the padded images, one patch after the other: patches overlap.
    void scatter(int64_t first, int64_t n, int64_t part) const {
        const Run* begin = runs.data() + first_run[part];
        const Run* end = runs.data() + first_run[part + 1];
        for (int64_t r = 0; r < n; r++) {
            const float* from = sums.data() + r * COLUMNS_AT_ONCE * SIDE;
            for (const Run* run = begin; run < end; run++) {
                float* to = patches[first + r] + run->offset;
                for (int64_t v = 0; v < run->whole; v++, from += SIDE, to += SIDE)
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(from)));
                if (!run->rest) continue;
                const __m512 old = _mm512_maskz_loadu_ps(run->rest, to);
                _mm512_mask_storeu_ps(to, run->rest, _mm512_add_ps(old, _mm512_loadu_ps(from)));
                from += SIDE;
            }
        }
    }

    const Plan<float>& plan;
    const Squares& squares;
    int64_t row, blocks;
    Buffer<bf16> rows;   // gradients of patches
    Buffer<float> sums;  // [patch][input]
    std::vector<float*> patches;
    std::vector<Run> runs;
    std::vector<int64_t> first_run;  // of each COLUMNS_AT_ONCE squares
};

void grad_input(const Layer& l, const bf16* grad, const bf16* matrices, const int64_t* assignment,
                bf16* grad_x) {
    const Plan<float> plan(l);
    const Plan<bf16> plan_of_matrices(l);
    const Squares squares(plan);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<bf16> matrix_of(plan_of_matrices, matrices, n_chunks,
                                   squares.inputs * squares.steps_out * SQUARE_B, lay_out_backward);
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        Buffer<bf16> buffer;
        Buffer<float> padded(chunk * plan.image_size);
        BackwardOfTile of_tile(plan, squares);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            const bf16* out = grad + begin * plan.n_patches * l.out_channels;
            std::fill(padded.begin(), padded.end(), 0.0f);
            sorted.sort(l, assignment, begin, count);
            for_each_kernel(l, sorted, [&](int64_t t, int64_t group) {
                const int64_t end = sorted.first[t + 1];
                of_tile.run(out + group * plan.group_outputs,
                            sorted.ids.data() + sorted.first[t], end - sorted.first[t],
                            sorted.first[l.n_tiles] - end, matrix_of(t, buffer, group),
                            padded.data() + group * plan.group_channels);
            });
            unpad_rounded(plan, padded.data(), begin, count, grad_x);
        }
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
