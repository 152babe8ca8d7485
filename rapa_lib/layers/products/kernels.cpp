// The tiled convolution's three products on a CPU; see operators.py for their meaning. At the end,
// the sort that draws assignments.
//
// A patch is never copied. Images are padded into a small channels-last buffer, in which a patch is
// `n_stretches` stretches of `length` contiguous numbers; the products read it there. Patches of
// one tile are taken ROWS at a time against the tile's kernel matrix (inputs × outputs), whose
// sums stay in registers: vectors hold neighbouring outputs (in grad_input: neighbouring inputs).
//
// Threads own images (forward, grad_input) or kernels (grad_weight), so nothing is locked, and which
// thread is faster changes no bit. The number of threads can: it sets how many images are taken at
// once, and with that the order in which overlapping patches are added up in grad_input.

#include "plan.cpp"

namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES), aligned(8)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
inline void store(T* to, Vector<T> v) {
    *reinterpret_cast<Vector<T>*>(to) = v;
}
// A kernel matrix with its rows filled up with zeros.
template <class T>
void fill_rows(const Plan<T>& plan, const T* matrix, T* filled) {
    for (int64_t k = 0; k < plan.n_inputs; k++)
        std::fill(std::copy_n(matrix + k * plan.layer.out_channels, plan.group_outputs,
                              filled + k * plan.out_padded),
                  filled + (k + 1) * plan.out_padded, T(0));
}

// A kernel matrix transposed, in pieces: [stretch][piece of COLUMNS inputs][output][COLUMNS].
template <class T>
void transpose(const Plan<T>& plan, const T* matrix, T* pieces) {
    const int64_t outputs = plan.layer.out_channels, length = plan.length;
    for (int64_t s = 0; s < plan.n_stretches; s++)
        for (int64_t begin = 0; begin < length; begin += COLUMNS<T>) {
            const int64_t width = std::min<int64_t>(COLUMNS<T>, length - begin);
            const T* from = matrix + (s * length + begin) * outputs;
            for (int64_t o = 0; o < plan.group_outputs; o++, pieces += COLUMNS<T>) {
                for (int64_t j = 0; j < width; j++) pieces[j] = from[j * outputs + o];
                for (int64_t j = width; j < COLUMNS<T>; j++) pieces[j] = 0;
            }
        }
}

// out[i] = start + Σ_k patch_i[k] · matrix[k], for N patches and `columns` outputs.
template <int N, class T>
void product(const Plan<T>& plan, const T* const* patches, const T* matrix, const T* start,
             T* const* out, int64_t columns) {
    Vector<T> sum[N][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            sum[i][v] = start ? load(start + v * LANES<T>) : Vector<T>{};
    const T* from[N];
    for (int64_t s = 0; s < plan.n_stretches; s++) {
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) from[i] = patches[i] + plan.stretches[s];
        for (int64_t k = 0; k < plan.length; k++, matrix += plan.out_padded) {
            Vector<T> row[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) row[v] = load(matrix + v * LANES<T>);
#pragma GCC unroll 8
            for (int i = 0; i < N; i++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) sum[i][v] += from[i][k] * row[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        if (columns == COLUMNS<T>) {
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) store(out[i] + v * LANES<T>, sum[i][v]);
        } else {
            std::memcpy(out[i], sum[i], columns * sizeof(T));
        }
    }
}

// patch_i[j] += Σ_o grad_i[o] · piece[o][j], for N patches and V vectors of inputs j.
template <int N, int V, class T>
void back_product(int64_t outputs, const T* const* grads, const T* piece, T* const* patches) {
    Vector<T> sum[N][V] = {};
    for (int64_t o = 0; o < outputs; o++, piece += COLUMNS<T>) {
        Vector<T> row[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) row[v] = load(piece + v * LANES<T>);
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) sum[i][v] += grads[i][o] * row[v];
    }
    // Patches overlap, so one after the other. Past the end of a stretch this adds zeros.
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            T* to = patches[i] + v * LANES<T>;
            store(to, load(to) + sum[i][v]);
        }
}

// sums[k] += Σ_p patch_p[offset + k] · grad_p, for N neighbouring inputs k and COLUMNS outputs.
template <int N, class T>
void outer_products(int64_t n_patches, const T* const* patches, int64_t offset, const T* grads,
                    T* sums, int64_t stride) {
    Vector<T> sum[N][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) sum[i][v] = load(sums + i * stride + v * LANES<T>);
    for (int64_t p = 0; p < n_patches; p++, grads += stride) {
        const T* patch = patches[p] + offset;
        Vector<T> grad[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) grad[v] = load(grads + v * LANES<T>);
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) sum[i][v] += patch[i] * grad[v];
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) store(sums + i * stride + v * LANES<T>, sum[i][v]);
}

// Call f.operator()<n>() for a run-time n of 1 … ROWS.
template <int N = ROWS, class F>
void with_rows(int64_t n, F&& f) {
    if constexpr (N > 0) {
        if (n == N)
            f.template operator()<N>();
        else
            with_rows<N - 1>(n, f);
    }
}

// Ask for the rows of ROWS patches a few products ahead of patch i, those of the next tiles included.
template <bool TO_WRITE, class T>
void prefetch_next(const Plan<T>& plan, const Sorted& sorted, int64_t i, const T* rows) {
    constexpr int64_t AHEAD = 4 * ROWS;
    const int64_t left = sorted.first[plan.layer.n_tiles] - i - AHEAD;
    prefetch_rows<TO_WRITE>(plan, rows, sizeof(T), sorted.ids.data() + i + AHEAD,
                            std::min<int64_t>(ROWS, left));
}

template <class T>
void forward(const Layer& l, const T* x, const T* matrices, const T* bias,
             const int64_t* assignment, T* y) {
    const Plan<T> plan(l);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<T> matrix_of(plan, matrices, n_chunks, plan.n_inputs * plan.out_padded,
                                plan.ragged() ? fill_rows<T> : nullptr);
#pragma omp parallel num_threads(l.threads)
    {
        std::vector<T> padded(chunk * plan.image_size), buffer, start(plan.out_padded);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            T* out = y + begin * plan.n_patches * l.out_channels;
            pad(plan, x, begin, count, padded.data());
            sorted.sort(l, assignment, begin, count);
            if (sorted.first[l.n_tiles] < count * plan.n_patches)
                std::fill_n(out, count * plan.n_patches * l.out_channels, T(0));
            for (int64_t part = 0; part < l.n_tiles * l.groups; part++) {
                const int64_t t = part / l.groups, group = part % l.groups;
                const int64_t end = sorted.first[t + 1], first_out = group * plan.group_outputs;
                if (sorted.first[t] == end) continue;
                const T* matrix = matrix_of(t, buffer, group);
                if (bias)
                    std::copy_n(bias + t * l.out_channels + first_out, plan.group_outputs,
                                start.begin());
                for (int64_t i = sorted.first[t]; i < end; i += ROWS) {
                    const int64_t rows = std::min<int64_t>(ROWS, end - i);
                    const T* patches[ROWS];
                    T* to[ROWS];
                    prefetch_next<true>(plan, sorted, i, out + first_out);
                    for (int64_t r = 0; r < rows; r++) {
                        patches[r] = plan.patch(padded.data(), sorted.ids[i + r]) +
                                     group * plan.group_channels;
                        to[r] = out + sorted.ids[i + r] * l.out_channels + first_out;
                    }
                    for (int64_t o = 0; o < plan.group_outputs; o += COLUMNS<T>) {
                        with_rows(rows, [&]<int N>() {
                            product<N>(plan, patches, matrix + o, bias ? start.data() + o : nullptr,
                                       to, std::min<int64_t>(COLUMNS<T>, plan.group_outputs - o));
                        });
                        for (int64_t r = 0; r < rows; r++) to[r] += COLUMNS<T>;
                    }
                }
            }
        }
    }
}

template <class T>
void grad_input(const Layer& l, const T* grad, const T* matrices, const int64_t* assignment,
                T* grad_x) {
    const Plan<T> plan(l);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const int64_t piece_size = plan.group_outputs * COLUMNS<T>;
    const int64_t n_pieces = plan.n_stretches * parts_of(plan.length, COLUMNS<T>);
    const Prepared<T> pieces_of(plan, matrices, n_chunks, n_pieces * piece_size, transpose<T>);
#pragma omp parallel num_threads(l.threads)
    {
        std::vector<T> padded(chunk * plan.image_size + COLUMNS<T>), buffer;
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            const T* out = grad + begin * plan.n_patches * l.out_channels;
            std::fill(padded.begin(), padded.end(), T(0));
            sorted.sort(l, assignment, begin, count);
            for (int64_t part = 0; part < l.n_tiles * l.groups; part++) {
                const int64_t t = part / l.groups, group = part % l.groups;
                const int64_t end = sorted.first[t + 1];
                if (sorted.first[t] == end) continue;
                const T* pieces = pieces_of(t, buffer, group);
                for (int64_t i = sorted.first[t]; i < end; i += ROWS) {
                    const int64_t rows = std::min<int64_t>(ROWS, end - i);
                    const T* grads[ROWS];
                    T* patches[ROWS];
                    prefetch_next<false>(plan, sorted, i, out + group * plan.group_outputs);
                    for (int64_t r = 0; r < rows; r++) {
                        grads[r] = out + sorted.ids[i + r] * l.out_channels +
                                   group * plan.group_outputs;
                        patches[r] = const_cast<T*>(plan.patch(padded.data(), sorted.ids[i + r])) +
                                     group * plan.group_channels;
                    }
                    const T* piece = pieces;
                    for (int64_t s = 0; s < plan.n_stretches; s++)
                        for (int64_t j = 0; j < plan.length; j += COLUMNS<T>, piece += piece_size) {
                            T* to[ROWS];
                            for (int64_t r = 0; r < rows; r++)
                                to[r] = patches[r] + plan.stretches[s] + j;
                            with_rows(rows, [&]<int N>() {
                                if (plan.length - j > LANES<T>)
                                    back_product<N, 2>(plan.group_outputs, grads, piece, to);
                                else
                                    back_product<N, 1>(plan.group_outputs, grads, piece, to);
                            });
                        }
                }
            }
            unpad(plan, padded.data(), begin, count, grad_x);
        }
    }
}

// Add the products of one tile's patches, of one group, to stretches s0 … s1 - 1 of its sums
// (inputs × out_padded).
template <class T>
class TileGradient {
public:
    explicit TileGradient(const Plan<T>& plan)
        : plan(plan), grads(BLOCK * plan.out_padded), patches(BLOCK) {}

    void add(const T* padded, const T* out, const Sorted& sorted, int64_t tile, int64_t group,
             int64_t s0, int64_t s1, T* sums, T* sum_bias) {
        const int64_t outputs = plan.group_outputs, end = sorted.first[tile + 1];
        out += group * outputs;
        padded += group * plan.group_channels;
        // Rows of nearly equal number: 15 are 8 and 7, not 8 and many small ones.
        const int64_t steps = parts_of(plan.length, ROWS);
        for (int64_t i = sorted.first[tile]; i < end; i += BLOCK) {
            const int64_t n = std::min<int64_t>(BLOCK, end - i);
            for (int64_t p = 0; p < n; p++) {
                patches[p] = plan.patch(padded, sorted.ids[i + p]);
                std::copy_n(out + sorted.ids[i + p] * plan.layer.out_channels, outputs,
                            grads.data() + p * plan.out_padded);
            }
            if (sum_bias)
                for (int64_t p = 0; p < n; p++)
                    for (int64_t o = 0; o < outputs; o++)
                        sum_bias[o] += grads[p * plan.out_padded + o];
            for (int64_t o = 0; o < plan.out_padded; o += COLUMNS<T>)
                for (int64_t s = s0; s < s1; s++)
                    for (int64_t step = 0; step < steps; step++) {
                        const int64_t k = step * plan.length / steps;
                        const int64_t rows = (step + 1) * plan.length / steps - k;
                        T* to = sums + ((s - s0) * plan.length + k) * plan.out_padded + o;
                        with_rows(rows, [&]<int N>() {
                            outer_products<N>(n, patches.data(), plan.stretches[s] + k,
                                              grads.data() + o, to, plan.out_padded);
                        });
                    }
        }
    }

private:
    const Plan<T>& plan;
    std::vector<T> grads;
    std::vector<const T*> patches;
};

template <class T>
void grad_weight(const Layer& l, const T* grad, const T* x, const int64_t* assignment,
                 T* grad_matrices, T* grad_bias) {
    const Plan<T> plan(l);
    const int64_t fitting = l.buffer_bytes / (plan.image_size * sizeof(T));
    const int64_t chunk = std::max<int64_t>(1, std::min(l.batch, fitting));
    // Few tiles are cut by stretches, so that every thread has some to do.
    const int64_t parts = std::min(plan.n_stretches, parts_of(4 * l.threads, l.n_tiles * l.groups));
    std::vector<T> padded(chunk * plan.image_size);
    Sorted sorted;
#pragma omp parallel num_threads(l.threads)
    {
        TileGradient<T> gradient(plan);
        std::vector<T> filled;
        for (int64_t begin = 0; begin < l.batch; begin += chunk) {
            const int64_t count = std::min(chunk, l.batch - begin);
            const T* out = grad + begin * plan.n_patches * l.out_channels;
#pragma omp for nowait
            for (int64_t i = 0; i < count; i++)
                pad(plan, x, begin + i, 1, padded.data() + i * plan.image_size);
#pragma omp single
            sorted.sort(l, assignment, begin, count);
#pragma omp for schedule(dynamic) collapse(2)
            for (int64_t i = 0; i < l.n_tiles * l.groups; i++)
                for (int64_t part = 0; part < parts; part++) {
                    const int64_t t = i / l.groups, group = i % l.groups;
                    const int64_t s0 = part * plan.n_stretches / parts;
                    const int64_t s1 = (part + 1) * plan.n_stretches / parts;
                    const int64_t n = (s1 - s0) * plan.length, outputs = plan.group_outputs;
                    T* matrix = grad_matrices + group * outputs +
                                (t * plan.n_inputs + s0 * plan.length) * l.out_channels;
                    T* bias = part ? nullptr : grad_bias + t * l.out_channels + group * outputs;
                    if (begin == 0) {
                        for (int64_t k = 0; k < n; k++)
                            std::fill_n(matrix + k * l.out_channels, outputs, T(0));
                        if (bias) std::fill_n(bias, outputs, T(0));
                    }
                    T* sums = matrix;
                    if (plan.ragged()) {
                        filled.assign(n * plan.out_padded, T(0));
                        sums = filled.data();
                    }
                    gradient.add(padded.data(), out, sorted, t, group, s0, s1, sums, bias);
                    if (plan.ragged())
                        for (int64_t k = 0; k < n; k++)
                            for (int64_t o = 0; o < outputs; o++)
                                matrix[k * l.out_channels + o] += sums[k * plan.out_padded + o];
                }
        }
    }
}

// The stable order of n keys, none negative (then their bits are ordered as they are).
void argsort(const float* keys, int64_t n, int64_t* order, std::vector<uint64_t>& scratch) {
    scratch.resize(2 * n);
    uint64_t *from = scratch.data(), *to = from + n;  // key in the upper half, place in the lower
    int32_t counts[4][256] = {};
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, keys + i, sizeof bits);
        from[i] = uint64_t(bits) << 32 | uint64_t(i);
        for (int byte = 0; byte < 4; byte++) counts[byte][bits >> 8 * byte & 255]++;
    }
    for (int byte = 0; byte < 4; byte++) {
        int32_t first = 0;
        for (int32_t& count : counts[byte]) first += std::exchange(count, first);
        const int shift = 32 + 8 * byte;
        for (int64_t i = 0; i < n; i++) to[counts[byte][from[i] >> shift & 255]++] = from[i];
        std::swap(from, to);
    }
    for (int64_t i = 0; i < n; i++) order[i] = int64_t(from[i] & 0xffffffff);
}

}  // namespace

#define RAPA_EXPORT(T)                                                                         \
    void rapa_forward_##T(const Layer* l, const T* x, const T* matrices, const T* bias,        \
                          const int64_t* assignment, T* y) {                                   \
        forward<T>(*l, x, matrices, bias, assignment, y);                                      \
    }                                                                                          \
    void rapa_grad_input_##T(const Layer* l, const T* grad, const T* matrices,                 \
                             const int64_t* assignment, T* grad_x) {                           \
        grad_input<T>(*l, grad, matrices, assignment, grad_x);                                 \
    }                                                                                          \
    void rapa_grad_weight_##T(const Layer* l, const T* grad, const T* x,                       \
                              const int64_t* assignment, T* grad_matrices, T* grad_bias) {     \
        grad_weight<T>(*l, grad, x, assignment, grad_matrices, grad_bias);                     \
    }

extern "C" {
RAPA_EXPORT(float)
RAPA_EXPORT(double)

void rapa_argsort_rows(const float* keys, int64_t rows, int64_t n, int64_t threads,
                       int64_t* order) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint64_t> scratch;
#pragma omp for
        for (int64_t r = 0; r < rows; r++) argsort(keys + r * n, n, order + r * n, scratch);
    }
}
}
