// The gradient of kernels in bfloat16, see bfloat16.cpp. Included, not compiled by itself.

#pragma once

#include "bfloat16_layout.cpp"

#if defined(__AVX512BF16__)

namespace {

// Sums of one tile's patches: squares `first` … `last` - 1 of the patch, all outputs of a group.
class TileSums {
public:
    static constexpr int STEPS = BLOCK / DEPTH;
    static constexpr int COLUMNS_AT_ONCE = 6;  // squares along a patch

    TileSums(const Plan<bf16>& plan, const Squares& squares)
        : plan(plan), squares(squares),
          grads(squares.outputs * STEPS * SIDE * DEPTH),
          patches(STEPS * COLUMNS_AT_ONCE * SQUARE_B) {}

    // sums: [square of the patch][square of outputs] of C; `fresh`: nothing is in them yet.
    // padded, out: of the group's first channel and output. More ids follow: those of the next tiles.
    void add(const bf16* padded, const bf16* out, const int32_t* ids, int64_t n_ids, int64_t n_more,
             int64_t first, int64_t last, bool fresh, float* sums, float* sum_bias) {
        const int64_t column_size = squares.outputs * SQUARE_C;
        if (fresh && n_ids == 0) std::fill_n(sums, (last - first) * column_size, 0.0f);
        for (int64_t i = 0; i < n_ids; i += BLOCK, fresh = false) {
            const int64_t n = std::min<int64_t>(BLOCK, n_ids - i), steps = parts_of(n, DEPTH);
            for (int64_t step = 0; step < steps; step++)
                lay_out_grads(out, ids + i + step * DEPTH, n - step * DEPTH, step);
            if (sum_bias) add_bias(out, ids + i, n, sum_bias);
            prefetch_rows<false>(plan, out, sizeof(bf16), ids + i + n,
                                 std::min<int64_t>(BLOCK, n_ids + n_more - i - n));
            for (int64_t k = first; k < last; k += COLUMNS_AT_ONCE) {
                const int64_t columns = std::min<int64_t>(COLUMNS_AT_ONCE, last - k);
                for (int64_t step = 0; step < steps; step++)
                    lay_out_patches(padded, ids + i + step * DEPTH, n - step * DEPTH,
                                    k, columns, step);
                multiply_block(columns, steps, fresh, sums + (k - first) * column_size);
            }
        }
    }

private:
    void multiply_block(int64_t columns, int64_t steps, bool fresh, float* sums) {
        const int64_t next = squares.outputs * SQUARE_C * 4;
        for (int64_t column = 0; column < columns; column += 2)
            for (int64_t o = 0; o < squares.outputs; o += 2) {
                float* to = sums + (column * squares.outputs + o) * SQUARE_C;
                multiply({.a = grads.data() + o * STEPS * SIDE * DEPTH, .a_row = 64,
                          .a_step = SIDE * DEPTH * 2, .a_square = STEPS * SIDE * DEPTH * 2,
                          .b = patches.data() + column * SQUARE_B,
                          .b_step = COLUMNS_AT_ONCE * SQUARE_B * 2, .b_square = SQUARE_B * 2,
                          .steps = steps, .c = to, .c_row = 64, .c_square_row = SQUARE_C * 4,
                          .c_square_column = next, .start = fresh ? nullptr : to, .start_row = 64,
                          .start_square_row = SQUARE_C * 4, .start_square_column = next},
                         std::min<int64_t>(2, squares.outputs - o),
                         std::min<int64_t>(2, columns - column), plan.layer.units);
            }
    }

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
                bf16* to = grads.data() +
                           (((o + 2 * r) / SIDE * STEPS + step) * SIDE + 2 * r % SIDE) * DEPTH;
                _mm512_storeu_si512(
                    to, _mm512_permutex2var_epi16(halves[0][r], even, halves[1][r]));
                _mm512_storeu_si512(
                    to + DEPTH, _mm512_permutex2var_epi16(halves[0][r], odd, halves[1][r]));
            }
        }
    }

    // Columns of up to 32 patches as squares of B: [step][square]. What lies past the end of a
    // stretch fills columns that are not read.
    void lay_out_patches(const bf16* padded, const int32_t* ids, int64_t n, int64_t first,
                         int64_t columns, int64_t step) {
        int64_t offsets[COLUMNS_AT_ONCE];
        for (int64_t k = 0; k < columns; k++)
            offsets[k] = plan.stretches[(first + k) / squares.per_stretch] +
                         (first + k) % squares.per_stretch * SIDE;
        bf16* to = patches.data() + step * COLUMNS_AT_ONCE * SQUARE_B;
        for (int64_t pair = 0; pair < DEPTH / 2; pair++, to += 2 * SIDE) {
            const int64_t there = n - 2 * pair;  // of the pair
            const bf16* one = there > 0 ? plan.patch(padded, ids[2 * pair]) : padded;
            const bf16* other = there > 1 ? plan.patch(padded, ids[2 * pair + 1]) : padded;
            if (there > 1) {
                for (int64_t k = 0; k < columns; k++)
                    _mm512_store_si512(to + k * SQUARE_B,
                                       interleaved(load_16(one + offsets[k]),
                                                   load_16(other + offsets[k])));
            } else {
                for (int64_t k = 0; k < columns; k++)
                    _mm512_store_si512(to + k * SQUARE_B,
                                       there > 0 ? interleaved(load_16(one + offsets[k]),
                                                               _mm256_setzero_si256())
                                                 : _mm512_setzero_si512());
            }
        }
    }

    static __m256i load_16(const bf16* from) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
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
    const Squares& squares;
    Buffer<bf16> grads, patches;
};

// Images whose patches are sorted and summed at once: so many that a tile has BLOCK patches of them.
// What fits the second cache is better than the whole batch; but then sums are kept in float32 from
// one chunk to the next, for which there must be room.
int64_t chunk_of_sums(const Plan<bf16>& plan, int64_t kept_bytes) {
    constexpr int64_t CACHE = 2 << 19;
    const Layer& l = plan.layer;
    const int64_t image_bytes = plan.image_size * sizeof(bf16);
    const int64_t wanted =
        std::max(parts_of(BLOCK * l.n_tiles, plan.n_patches), CACHE / image_bytes);
    const int64_t fitting = std::max<int64_t>(1, l.buffer_bytes / image_bytes);
    return std::min({l.batch, fitting, kept_bytes < l.buffer_bytes ? wanted : fitting});
}

void grad_weight(const Layer& l, const bf16* grad, const bf16* x, const int64_t* assignment,
                 bf16* grad_matrices, bf16* grad_bias) {
    const Plan<bf16> plan(l);
    const Squares squares(plan);
    const int64_t kernels = l.n_tiles * l.groups, outputs = plan.group_outputs;
    const int64_t column_size = squares.outputs * SQUARE_C, size = squares.inputs * column_size;
    const int64_t chunk = std::max<int64_t>(1, chunk_of_sums(plan, kernels * size * 4));
    // Few tiles are cut by inputs, so that every thread has some to do.
    const int64_t parts = std::min(squares.inputs, parts_of(4 * l.threads, kernels));
    Buffer<float> kept(chunk < l.batch ? kernels * size : 0);
    std::vector<float> bias(l.n_tiles * l.out_channels);
    Buffer<bf16> padded(chunk * plan.image_size + DEPTH);  // loads are of whole vectors
    Sorted sorted;
#pragma omp parallel num_threads(l.threads)
    {
        const WithTiles tiles(l.units);
        TileSums tile_sums(plan, squares);
        Buffer<float> own(kept.empty() ? parts_of(squares.inputs, parts) * column_size : 0);
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
                    float* sums = kept.empty() ? own.data()
                                               : kept.data() + i * size + first * column_size;
                    tile_sums.add(padded.data() + group * plan.group_channels, out + group * outputs,
                                  sorted.ids.data() + sorted.first[t],
                                  sorted.first[t + 1] - sorted.first[t],
                                  sorted.first[l.n_tiles] - sorted.first[t + 1], first, last,
                                  begin == 0, sums,
                                  part ? nullptr : bias.data() + t * l.out_channels + group * outputs);
                    if (begin + count == l.batch)
                        store_sums(plan, squares, sums, first, last,
                                   grad_matrices + t * plan.n_inputs * l.out_channels +
                                       group * outputs);
                }
        }
    }
    const int64_t n = l.n_tiles * l.out_channels;
    for (int64_t i = 0; i < n; i += SIDE) {
        const __m512 sums = _mm512_maskz_loadu_ps(first_of_16(n - i), bias.data() + i);
        _mm512_mask_storeu_epi16(grad_bias + i, first_of_16(n - i), rounded(sums, sums));
    }
}

}  // namespace

#endif
