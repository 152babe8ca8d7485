// Analog tiles on a CPU: the products of _products.py and the pulsed updates of _tile_array.py, in
// float32. Meaning and sources are there; padding, sorting and the product kernel are those of the
// digital convolution.
//
// Each patch draws from its own generator, seeded by its number, so threads change no draw.

#include "../layers/products/kernels.cpp"

#include <cmath>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

extern "C" {

// Everything but the tensors; _compiled.py beside this file declares the same fields.
struct Periphery {
    double inp_bound, inp_step, inp_noise, out_bound, out_step, out_noise, w_noise, bm_limit;
    int64_t abs_max;
    uint64_t seed;
};
struct Pulses {
    double rate, most, dw_min_std;  // rate: lr / dw_min; most: slots in a train
    int64_t update_management, update_bl_management;
    uint64_t seed;
};
// How steps depend on the weight; see _devices.py.
struct Steps {
    double dw_min_std, a, b, A_up, A_down, gamma_up, gamma_down, std_add, std_slope, write_noise;
    int64_t kind, additive;
};
}

namespace {

enum { CONSTANT, LINEAR, EXPONENTIAL, POWER };

constexpr int WIDTH = LANES<float>;
using Floats = Vector<float>;
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES), aligned(4)));

inline Words bits_of(Floats v) { return (Words)v; }
inline Floats floats_of(Words v) { return (Floats)v; }
inline Floats magnitude(Floats v) { return floats_of(bits_of(v) & 0x7fffffffu); }
inline Floats select(Ints where, Floats a, Floats b) {
    return floats_of((bits_of(a) & (Words)where) | (bits_of(b) & ~(Words)where));
}
inline Floats clamp(Floats v, float bound) {
    v = select(v > bound, v - v + bound, v);
    return select(v < -bound, v - v - bound, v);
}
inline Floats positive(Floats v) { return select(v > 0, v, v - v); }
// To the nearest whole number, for less than 2²² of them.
inline Floats nearest(Floats v) { return (v + 12582912.0f) - 12582912.0f; }
inline bool any(Ints v) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#else
    int32_t all = 0;
    for (int i = 0; i < WIDTH; i++) all |= v[i];
    return all != 0;
#endif
}
inline Floats root(Floats v) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < WIDTH; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}
inline Words ones(Words v) {
#if defined(__AVX512VPOPCNTDQ__)
    return (Words)_mm512_popcnt_epi32((__m512i)v);
#else
    v -= (v >> 1) & 0x55555555u;
    v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
    return (((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
#endif
}
inline Floats to_floats(Words v) { return __builtin_convertvector((Ints)v, Floats); }
// Natural logarithm of positive normal numbers (Cephes' polynomial).
inline Floats logarithm(Floats v) {
    const Words bits = bits_of(v);
    Floats e = __builtin_convertvector((Ints)(bits >> 23) - 126, Floats);
    Floats m = floats_of((bits & 0x007fffffu) | 0x3f000000u);
    const Ints small = m < 0.707106781186547524f;
    e += select(small, m - m - 1.0f, m - m);
    m = select(small, m + m, m) - 1.0f;
    const Floats z = m * m;
    Floats y = 7.0376836292e-2f * m - 1.1514610310e-1f;
    for (float c : {1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                    2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
        y = y * m + c;
    return m + (y * m * z - 0.5f * z) + e * 0.693147180559945f;
}
// exp(v), for v held within ±80 (Cephes' polynomial).
inline Floats exponential(Floats v) {
    v = clamp(v, 80);
    const Floats n = nearest(v * 1.44269504088896341f);
    const Floats r = v - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    for (float c : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = y * r + c;
    y = y * r * r + r + 1.0f;
    return y * floats_of((Words)(__builtin_convertvector(n, Ints) + 127) << 23);
}
// b^e for b in 0 … 1 and e ≥ 0.
inline Floats power(Floats b, Floats e) {
    const Floats result = exponential(e * logarithm(select(b > 1e-30f, b, b - b + 1e-30f)));
    return select((b > 1e-30f) | (e == 0), result, b - b);
}

// Blackman and Vigna's xoshiro128++, one in each lane.
class Random {
public:
    Random(uint64_t seed, uint64_t a, uint64_t b = 0) {
        uint64_t key = seed + 0x9e3779b97f4a7c15u * (a + 1) + 0xd1342543de82ef95u * (b + 1);
        key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
        key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
        key ^= key >> 31;
        Words lane;
        for (int i = 0; i < WIDTH; i++) lane[i] = i;
        for (int i = 0; i < 4; i++) {
            Words v = (lane * 4 + i + 1) * 0x9e3779b9u + uint32_t(key);
            v = (v ^ (v >> 16) ^ uint32_t(key >> 32)) * 0x85ebca6bu;
            v = (v ^ (v >> 13)) * 0xc2b2ae35u;
            state[i] = v ^ (v >> 16);
        }
    }
    Words words() {
        const Words sum = state[0] + state[3], result = turn(sum, 7) + state[0];
        const Words shifted = state[1] << 9;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = turn(state[3], 11);
        return result;
    }
    Floats uniform() { return to_floats(words() >> 8) * 0x1p-24f; }  // in [0, 1)
    // Standard normal, by Box and Muller.
    Floats normal() {
        if (spare_left) {
            spare_left = false;
            return spare;
        }
        const Floats radius = root(-2.0f * logarithm(uniform() + 0x1p-25f));
        // sin and cos of 2πu: polynomials on a quarter turn, then signs and places by quadrant.
        const Floats turns = uniform() * 4.0f, quadrant = nearest(turns);
        const Floats x = (turns - quadrant) * 1.57079632679f, xx = x * x;
        const Floats s = x * (1 + xx * (-1.6666654611e-1f + xx * (8.3321608736e-3f
                              - xx * 1.9515295891e-4f)));
        const Floats c = 1 - 0.5f * xx + xx * xx * (4.166664568298827e-2f
                              + xx * (-1.388731625493765e-3f + xx * 2.443315711809948e-5f));
        const Ints q = __builtin_convertvector(quadrant, Ints), odd = -(q & 1);
        const Words sign_s = (Words)(q & 2) << 30, sign_c = (Words)((q + 1) & 2) << 30;
        spare = radius * floats_of(bits_of(select(odd, s, c)) ^ sign_c);
        spare_left = true;
        return radius * floats_of(bits_of(select(odd, c, s)) ^ sign_s);
    }

private:
    static Words turn(Words v, int n) { return (v << n) | (v >> (32 - n)); }
    Words state[4];
    Floats spare{};
    bool spare_left = false;
};

inline int64_t padded(int64_t n) { return parts_of(n, COLUMNS<float>) * COLUMNS<float>; }

// The largest magnitude; infinity or more bits where a number is not finite.
float largest(const float* x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        most = std::max(most, bits & 0x7fffffffu);
    }
    float result;
    std::memcpy(&result, &most, sizeof result);
    return result;
}

// A layer that multiplies vectors: one pixel, one patch.
Layer vectors_of(int64_t inputs, int64_t outputs) {
    Layer l{};
    l.channels = inputs, l.out_channels = outputs;
    for (int64_t* one : {&l.batch, &l.height, &l.width, &l.padded_height, &l.padded_width,
                         &l.out_height, &l.out_width, &l.kernel_height, &l.kernel_width,
                         &l.stride_h, &l.stride_w, &l.dilation_h, &l.dilation_w, &l.n_tiles,
                         &l.threads})
        *one = 1;
    return l;
}

// Products of up to ROWS vectors with one matrix, as the periphery lets them happen.
class Reader {
public:
    Reader(const Periphery& io, int64_t inputs, int64_t outputs)
        : io(io), inputs(inputs), outputs(padded(outputs)), layer(vectors_of(inputs, outputs)),
          plan(layer), sent(ROWS * padded(inputs)), out(ROWS * padded(outputs)) {
        for (int64_t r = 0; r < ROWS; r++) rows[r].resize(padded(inputs));
    }

    float* row(int64_t r) { return rows[r].data(); }                    // to write an input to
    const float* result(int64_t r) { return out.data() + r * outputs; }  // of row r, scaled back

    // False if an input is not finite. The matrix has `outputs` columns, padded; ids seed the noise.
    bool read(int64_t n, const float* matrix, const int64_t* ids) {
        float scale[ROWS];
        int64_t todo[ROWS], left = n;
        for (int64_t r = 0; r < n; r++) {
            const float most = largest(row(r), inputs);
            if (!(most < INFINITY)) return false;
            scale[r] = io.abs_max ? most : 1;
            todo[r] = r;
        }
        for (double factor = 1; left && (factor == 1 || factor <= io.bm_limit); factor *= 2) {
            for (int64_t i = 0; i < left; i++) send(i, todo[i], scale[todo[i]], factor, ids);
            const float* from[ROWS];
            float* to[ROWS];
            for (int64_t o = 0; o < outputs; o += COLUMNS<float>) {
                for (int64_t i = 0; i < left; i++) {
                    from[i] = sent.data() + i * padded(inputs);
                    to[i] = out.data() + todo[i] * outputs + o;
                }
                with_rows(left, [&]<int N>() {
                    product<N>(plan, from, matrix + o, static_cast<const float*>(nullptr), to,
                               COLUMNS<float>);
                });
            }
            int64_t again = 0;
            for (int64_t i = 0; i < left; i++)
                if (receive(i, todo[i], scale[todo[i]], factor, ids)) todo[again++] = todo[i];
            left = again;
        }
        return true;
    }

private:
    void send(int64_t i, int64_t r, float scale, float factor, const int64_t* ids) {
        const float inverse = 1 / ((scale > 0 ? scale : 1) * factor), step = io.inp_step;
        const float shrunk = step ? (1 - 1e-6f) / step : 0, bound = io.inp_bound;
        float* to = sent.data() + i * padded(inputs);
        Random random(io.seed, ids[r], uint64_t(factor) * 2);
        Floats squares{};
        for (int64_t k = 0; k < inputs; k += WIDTH) {
            Floats v = load(rows[r].data() + k) * inverse;
            v = clamp(v, bound);
            if (step) v = nearest(v * shrunk) * step;
            if (io.inp_noise) v += float(io.inp_noise) * random.normal();
            for (int64_t j = inputs; j < k + WIDTH; j++) v[j - k] = 0;
            squares += v * v;
            store(to + k, v);
        }
        if (io.w_noise) {
            length[i] = 0;
            for (int j = 0; j < WIDTH; j++) length[i] += squares[j];
        }
    }

    // Noise, ADC and scale; whether an output went past its bound.
    bool receive(int64_t i, int64_t r, float scale, float factor, const int64_t* ids) {
        double variance = scale > 0 ? io.out_noise * io.out_noise : 0;
        if (io.w_noise) variance += io.w_noise * io.w_noise * length[i];
        const float sigma = std::sqrt(variance), step = io.out_step, bound = io.out_bound;
        const float shrunk = step ? (1 - 1e-6f) / step : 0, back = (scale > 0 ? scale : 1) * factor;
        const float limit = bound * (1 + 1e-6f), far = step ? 4e6f * step : INFINITY;
        float* to = out.data() + r * outputs;
        Random random(io.seed, ids[r], uint64_t(factor) * 2 + 1);
        Ints hit{};
        for (int64_t o = 0; o < outputs; o += WIDTH) {
            Floats v = load(to + o);
            if (sigma) v += sigma * random.normal();
            if (step) v = nearest(clamp(v, far) * shrunk) * step;
            // Columns past the last are no outputs.
            if (o + WIDTH <= layer.out_channels) {
                hit |= magnitude(v) > limit;
            } else {
                for (int64_t j = o; j < layer.out_channels; j++)
                    hit[0] |= std::abs(v[j - o]) > limit ? -1 : 0;
            }
            store(to + o, clamp(v, bound) * back);
        }
        return any(hit);
    }

    const Periphery& io;
    int64_t inputs, outputs;
    Layer layer;
    Plan<float> plan;
    std::vector<float> rows[ROWS], sent, out;
    double length[ROWS];
};

// A kernel matrix transposed, (outputs × inputs), its rows filled up with zeros.
void transpose_rows(const Plan<float>& plan, const float* matrix, float* to) {
    const int64_t outputs = plan.layer.out_channels, width = padded(plan.n_inputs);
    for (int64_t o = 0; o < outputs; o++)
        std::fill(to + o * width + plan.n_inputs, to + (o + 1) * width, 0.0f);
    for (int64_t k = 0; k < plan.n_inputs; k++)
        for (int64_t o = 0; o < outputs; o++) to[o * width + k] = matrix[k * outputs + o];
}

void copy_patch(const Plan<float>& plan, const float* patch, float* to) {
    for (int64_t s = 0; s < plan.n_stretches; s++)
        std::copy_n(patch + plan.stretches[s], plan.length, to + s * plan.length);
}

// Call f(tile, first patch, number) for the patches of some images, ROWS at most of a tile at once.
template <class F>
void for_rows(const Layer& l, const Sorted& sorted, F&& f) {
    for (int64_t t = 0; t < l.n_tiles; t++)
        for (int64_t i = sorted.first[t]; i < sorted.first[t + 1]; i += ROWS)
            f(t, i, std::min<int64_t>(ROWS, sorted.first[t + 1] - i));
}

bool analog_forward(const Layer& l, const Periphery& io, const float* x, const float* matrices,
                    const float* bias, const int64_t* assignment, float* y) {
    const Plan<float> plan(l);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<float> matrix_of(plan, matrices, n_chunks, plan.n_inputs * plan.out_padded,
                                    plan.ragged() ? fill_rows<float> : nullptr);
    bool finite = true;
#pragma omp parallel num_threads(l.threads) reduction(&& : finite)
    {
        std::vector<float> images(chunk * plan.image_size), buffer;
        Reader reader(io, plan.n_inputs, l.out_channels);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            float* out = y + begin * plan.n_patches * l.out_channels;
            pad(plan, x, begin, count, images.data());
            sorted.sort(l, assignment, begin, count);
            if (sorted.first[l.n_tiles] < count * plan.n_patches)
                std::fill_n(out, count * plan.n_patches * l.out_channels, 0.0f);
            int64_t prepared = -1;
            const float* matrix = nullptr;
            for_rows(l, sorted, [&](int64_t t, int64_t i, int64_t n) {
                if (t != prepared) matrix = matrix_of(prepared = t, buffer);
                int64_t ids[ROWS];
                for (int64_t r = 0; r < n; r++) {
                    ids[r] = begin * plan.n_patches + sorted.ids[i + r];
                    copy_patch(plan, plan.patch(images.data(), sorted.ids[i + r]), reader.row(r));
                }
                finite = reader.read(n, matrix, ids) && finite;
                for (int64_t r = 0; r < n; r++) {
                    float* to = out + sorted.ids[i + r] * l.out_channels;
                    for (int64_t o = 0; o < l.out_channels; o++)
                        to[o] = reader.result(r)[o] + (bias ? bias[t * l.out_channels + o] : 0);
                }
            });
        }
    }
    return finite;
}

bool analog_backward(const Layer& l, const Periphery& io, const float* grad, const float* matrices,
                     const int64_t* assignment, float* grad_x) {
    const Plan<float> plan(l);
    const int64_t chunk = plan.chunk(), n_chunks = parts_of(l.batch, chunk);
    const Prepared<float> matrix_of(plan, matrices, n_chunks, l.out_channels * padded(plan.n_inputs),
                                    transpose_rows);
    bool finite = true;
#pragma omp parallel num_threads(l.threads) reduction(&& : finite)
    {
        std::vector<float> images(chunk * plan.image_size), buffer;
        Reader reader(io, l.out_channels, plan.n_inputs);
        Sorted sorted;
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            const int64_t begin = c * chunk, count = std::min(chunk, l.batch - begin);
            const float* errors = grad + begin * plan.n_patches * l.out_channels;
            std::fill(images.begin(), images.end(), 0.0f);
            sorted.sort(l, assignment, begin, count);
            int64_t prepared = -1;
            const float* matrix = nullptr;
            for_rows(l, sorted, [&](int64_t t, int64_t i, int64_t n) {
                if (t != prepared) matrix = matrix_of(prepared = t, buffer);
                int64_t ids[ROWS];
                for (int64_t r = 0; r < n; r++) {
                    ids[r] = begin * plan.n_patches + sorted.ids[i + r];
                    std::copy_n(errors + sorted.ids[i + r] * l.out_channels, l.out_channels,
                                reader.row(r));
                }
                finite = reader.read(n, matrix, ids) && finite;
                for (int64_t r = 0; r < n; r++) {
                    float* to = const_cast<float*>(plan.patch(images.data(), sorted.ids[i + r]));
                    for (int64_t s = 0; s < plan.n_stretches; s++)
                        for (int64_t k = 0; k < plan.length; k++)
                            to[plan.stretches[s] + k] += reader.result(r)[s * plan.length + k];
                }
            });
            unpad(plan, images.data(), begin, count, grad_x);
        }
    }
    return finite;
}

// Trains of 31 slots at most. A word holds a train, its bit 31 the sign of the number it stands for.
struct Train {
    float x_scale, d_scale;
    uint32_t slots;
};

// The number of slots and what turns numbers into probabilities; see _pulses.py.
Train train_of(const Pulses& p, double x_max, double d_max) {
    if (x_max == 0 || d_max == 0) return {0, 0, 0};
    double slots = p.most, ratio = 1;
    if (p.update_management || p.update_bl_management) {
        const double pulses = p.rate * x_max * d_max;
        d_max *= std::min(1.0, p.most / pulses);
        if (p.update_bl_management) slots = std::clamp(std::ceil(pulses), 1.0, p.most);
        if (p.update_management) ratio = std::sqrt(x_max / d_max);
    }
    const double scale = std::sqrt(p.rate / slots);
    const double most = 1e30;
    return {float(std::min(scale / ratio, most)), float(std::min(scale * ratio, most)),
            uint32_t(slots)};
}

// Words whose bits 0 … slots − 1 fire with these probabilities.
Words fire(Random& random, Floats probability, uint32_t slots) {
    Words word{};
    if (slots <= 12) {  // compare in every slot
        const Words threshold = (Words)__builtin_convertvector(probability * 0x1p24f, Ints);
        for (uint32_t s = 0; s < slots; s++)
            word |= (Words)((random.words() >> 8) < threshold) & (1u << s);
        return word;
    }
    // All slots at once: a bit of the probability at a time, the least first. It has 16 bits, rounded
    // at random, so that the mean is kept.
    const Floats rounded = probability * 0x1p16f + random.uniform();
    const Words p = (Words)__builtin_convertvector(rounded, Ints);
    for (int bit = 0; bit < 16; bit++) {
        const Words r = random.words(), set = -((p >> bit) & 1);
        word = (word & r) | (set & (word | r));
    }
    return (word | -((p >> 16) & 1)) & ((1u << slots) - 1);
}

// A stretch of numbers as trains, the k-th of a patch.
void encode(const Pulses& p, int64_t patch, int64_t k, const float* numbers, int64_t n, float scale,
            uint32_t slots, float* out) {
    Random random(p.seed, patch, k);
    for (int64_t i = 0; i < n; i += WIDTH) {
        Floats v = load(numbers + i);
        for (int64_t j = n; j < i + WIDTH; j++) v[j - i] = 0;
        v = clamp(v * scale, 1);
        const Words word = any(v != 0) ? fire(random, magnitude(v), slots) : Words{};
        v = floats_of(word | (bits_of(v) & 0x80000000u));
        std::memcpy(out + i, &v, std::min<int64_t>(WIDTH, n - i) * sizeof(float));
    }
}

// Between the numbers of neighbouring inputs: not a power of two, whose lines would share a place in
// the cache.
constexpr int XS = BLOCK + 16;

// Sums over patches for `V` vectors of outputs and one input: numbers of pulses up and down.
template <int V>
void count(int64_t n, const float* x, const float* d, int64_t stride, float* up, float* down) {
    Words sum[V] = {};  // pulses up in the lower half, down in the upper
    for (int64_t p = 0; p < n; p++, d += stride) {
        uint32_t word;
        std::memcpy(&word, x + p, sizeof word);
        const uint32_t flip = (word >> 27 & 16) ^ 16;
        word &= 0x7fffffffu;
        if (!word) continue;
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            const Words other = bits_of(load(d + v * WIDTH));
            sum[v] += ones(other & word) << ((other >> 27 & 16) ^ flip);
        }
    }
    for (int v = 0; v < V; v++) {
        // The signs were equal, the product positive: down. flip put those into the upper half.
        store(up + v * WIDTH, load(up + v * WIDTH) + to_floats(sum[v] & 0xffffu));
        store(down + v * WIDTH, load(down + v * WIDTH) + to_floats(sum[v] >> 16));
    }
}

// The devices of a layer; null: absent.
struct Devices {
    float* weight;
    const float *step_up, *step_down, *w_max, *w_min, *shape_up, *shape_down, *reference;
    float* read;  // what is read of weights that are written with noise
    const Steps* steps;
};

// Some lanes of an array, from the i-th number.
struct Some {
    int64_t i, width;
    Floats of(const float* from) const {
        if (width == WIDTH) return load(from + i);
        Floats some{};
        std::memcpy(&some, from + i, width * sizeof(float));
        return some;
    }
    void to(float* at, Floats v) const {
        if (width == WIDTH)
            store(at + i, v);
        else
            std::memcpy(at + i, &v, width * sizeof(float));
    }
};

// Move devices with constant steps by their pulses.
void move(const Devices& d, const Some& at, Floats u, Floats v, float cycle, Random& random) {
    const Floats a = at.of(d.step_up), b = at.of(d.step_down);
    const Floats variance = (u * a * a + v * b * b) * cycle;
    Floats w = at.of(d.weight) + (u * a - v * b) + root(variance) * random.normal();
    const Floats high = at.of(d.w_max), low = at.of(d.w_min);
    w = select(w > high, high, w);
    at.to(d.weight, select(w < low, low, w));
}

// Move devices whose steps depend on their weight: pulse by pulse, in random order.
template <int KIND>
void scan(const Devices& d, const Some& at, Floats u, Floats v, Random& random) {
    const Steps& s = *d.steps;
    const Floats up = at.of(d.step_up), down = at.of(d.step_down);
    const Floats high = at.of(d.w_max), low = at.of(d.w_min), range = high - low;
    const Floats inverse = 1 / select(range > 0, range, range - range + 1);
    Floats p{}, q{}, reference{}, w = at.of(d.weight);
    if (KIND != EXPONENTIAL) p = at.of(d.shape_up), q = at.of(d.shape_down);
    if (d.reference) reference = at.of(d.reference);
    const Ints reached = (u + v) > 0;
    for (Floats left = u + v; any(left > 0); left = u + v) {
        const Ints rises = random.uniform() * left < u, falls = (left > 0) & ~rises;
        const Floats at_zero = select(rises, up, down);
        Floats step;
        if (KIND == LINEAR) {
            step = at_zero + select(rises, p, q) * (w + reference);
        } else if (KIND == EXPONENTIAL) {
            const Floats z = w * inverse * (2 * float(s.a)) + float(s.b);
            const Floats gone = select(rises, float(s.A_up) * exponential(float(s.gamma_up) * z),
                                       float(s.A_down) * exponential(-float(s.gamma_down) * z));
            step = at_zero * positive(1 - gone);
        } else {
            const Floats share = (high - w) * inverse;
            step = at_zero * power(select(rises, share, 1 - share), select(rises, p, q));
        }
        Floats deviation = s.additive ? at_zero : step;
        if (s.std_add != 0 || s.std_slope != 0)
            deviation = magnitude(step) + float(s.std_add) + float(s.std_slope) * magnitude(w);
        if (s.dw_min_std != 0) step += float(s.dw_min_std) * deviation * random.normal();
        w += select(rises, step, select(falls, -step, step - step));
        w = select(w > high, high, w);
        w = select(w < low, low, w);
        u -= select(rises, u - u + 1, u - u);
        v -= select(falls, v - v + 1, v - v);
    }
    at.to(d.weight, w);
    if (!d.read) return;
    const Floats noisy = w + float(s.write_noise) * random.normal();
    at.to(d.read, select(reached, noisy, at.of(d.read)));
}

// Move n devices, from the first-th, by their pulses.
void move_all(const Devices& d, int64_t first, int64_t n, const float* up, const float* down,
              double cycle, Random& random) {
    const int64_t kind = d.steps ? d.steps->kind : CONSTANT;
    for (int64_t k = 0; k < n; k += WIDTH) {
        const Floats u = load(up + k), v = load(down + k);
        if (!any((u != 0) | (v != 0))) continue;
        const Some at{first + k, std::min<int64_t>(WIDTH, n - k)};
        if (kind == CONSTANT)
            move(d, at, u, v, cycle, random);
        else if (kind == LINEAR)
            scan<LINEAR>(d, at, u, v, random);
        else if (kind == EXPONENTIAL)
            scan<EXPONENTIAL>(d, at, u, v, random);
        else
            scan<POWER>(d, at, u, v, random);
    }
}

// What all threads of an update read: images with their borders, the errors as trains, the patches
// by tile; signs of every tile's inputs, which turn pulses round, or null.
struct Signals {
    const Layer& layer;
    const Pulses& pulses;
    const float* signs;
    const Plan<float> plan;
    const int64_t outputs, width, length, total;
    std::vector<float> images, trains;
    std::vector<Train> train;
    Sorted sorted;

    Signals(const Layer& l, const Pulses& p, const int64_t* assignment, const float* signs)
        : layer(l), pulses(p), signs(signs), plan(l), outputs(l.out_channels), width(plan.out_padded),
          length(plan.length), total(l.batch * plan.n_patches),
          images(l.batch * plan.image_size + WIDTH), trains(total * width), train(total) {
        sorted.sort(l, assignment, 0, l.batch);
    }

    // Pad an image and send the errors of its patches; false if a number is not finite.
    bool send(const float* x, const float* grad, int64_t image, float* row) {
        bool finite = true;
        pad(plan, x, image, 1, images.data() + image * plan.image_size);
        for (int64_t j = image * plan.n_patches; j < (image + 1) * plan.n_patches; j++) {
            copy_patch(plan, plan.patch(images.data(), j), row);
            const float x_max = largest(row, plan.n_inputs);
            const float d_max = largest(grad + j * outputs, outputs);
            finite = finite && x_max < INFINITY && d_max < INFINITY;
            train[j] = train_of(pulses, x_max, d_max);
            float* errors = trains.data() + j * width;
            std::copy_n(grad + j * outputs, outputs, errors);
            encode(pulses, j, 0, errors, outputs, train[j].d_scale, train[j].slots, errors);
        }
        return finite;
    }
};

// One thread's buffers: counts the pulses that a stretch of a tile's inputs sends to its devices.
struct Counter {
    const Signals& all;
    const int64_t n_devices;
    std::vector<float> d, xs, row;  // of a block of patches: trains of errors, of inputs
    std::vector<float> up, down;    // sums, (length, width)
    std::vector<float> flat;        // the same, (2, length · outputs + WIDTH)

    explicit Counter(const Signals& signals)
        : all(signals), n_devices(all.length * all.outputs), d(BLOCK * all.width),
          xs(all.length * XS), row(all.length + WIDTH), up(all.length * all.width),
          down(up.size()), flat(2 * (n_devices + WIDTH)) {}

    float* ups() { return flat.data(); }
    float* downs() { return ups() + n_devices + WIDTH; }

    // Count the pulses of a tile's patches; false if it has none.
    bool run(int64_t tile, int64_t stretch) {
        const int64_t begin = all.sorted.first[tile], end = all.sorted.first[tile + 1];
        if (begin == end) return false;
        for (auto* sums : {&up, &down}) std::fill(sums->begin(), sums->end(), 0);
        for (int64_t i = begin; i < end; i += BLOCK)
            add(gather(i, std::min<int64_t>(i + BLOCK, end), stretch));
        flatten((tile * all.plan.n_stretches + stretch) * all.length);
        return true;
    }

    // Put the signals of those patches of a block that send any side by side; return how many.
    int64_t gather(int64_t begin, int64_t end, int64_t stretch) {
        const int64_t width = all.width;
        int64_t n = 0;
        for (int64_t j = begin; j < end; j++) {
            const int64_t id = all.sorted.ids[j];
            if (!all.train[id].slots) continue;
            std::copy_n(all.trains.data() + id * width, width, d.data() + n * width);
            send_inputs(id, stretch, n++);
        }
        return n;
    }

    // A stretch of a patch as trains: the n-th of a block.
    void send_inputs(int64_t id, int64_t stretch, int64_t n) {
        const Train& train = all.train[id];
        const float* from = all.plan.patch(all.images.data(), id) + all.plan.stretches[stretch];
        encode(all.pulses, id, stretch + 1, from, all.length, train.x_scale, train.slots,
               row.data());
        for (int64_t k = 0; k < all.length; k++) xs[k * XS + n] = row[k];
    }

    // Add the pulses of n gathered patches.
    void add(int64_t n) {
        const int64_t width = all.width;
        for (int64_t o = 0; o < width; o += COLUMNS<float>)
            for (int64_t k = 0; k < all.length; k++)
                count<VECTORS>(n, xs.data() + k * XS, d.data() + o, width,
                               up.data() + k * width + o, down.data() + k * width + o);
    }

    // Leave out the outputs that only fill the vectors; give inputs, from the first-th, their signs.
    void flatten(int64_t first) {
        const int64_t outputs = all.outputs, width = all.width;
        for (int64_t k = 0; k < all.length; k++) {
            const bool turned = all.signs && all.signs[first + k] < 0;
            const auto& rises = turned ? down : up;
            const auto& falls = turned ? up : down;
            std::copy_n(rises.data() + k * width, outputs, ups() + k * outputs);
            std::copy_n(falls.data() + k * width, outputs, downs() + k * outputs);
        }
        for (float* tail : {ups(), downs()}) std::fill_n(tail + n_devices, WIDTH, 0.0f);
    }
};

bool pulsed_update(const Layer& l, const Pulses& p, const float* x, const float* grad,
                   const int64_t* assignment, const float* signs, const Devices& devices) {
    Signals all(l, p, assignment, signs);
    bool finite = true;
#pragma omp parallel num_threads(l.threads) reduction(&& : finite)
    {
        std::vector<float> row(all.plan.n_inputs);
#pragma omp for
        for (int64_t i = 0; i < l.batch; i++) {
            const bool sent = all.send(x, grad, i, row.data());
            finite = finite && sent;
        }
    }
    if (!finite) return false;
#pragma omp parallel num_threads(l.threads)
    {
        Counter counter(all);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t t = 0; t < l.n_tiles; t++)
            for (int64_t s = 0; s < all.plan.n_stretches; s++) {
                if (!counter.run(t, s)) continue;
                const int64_t at = (t * all.plan.n_stretches + s) * counter.n_devices;
                Random random(p.seed, all.total + t, s);
                move_all(devices, at, counter.n_devices, counter.ups(), counter.downs(),
                         p.dw_min_std * p.dw_min_std, random);
            }
    }
    return true;
}

}  // namespace

extern "C" {
int rapa_analog_forward(const Layer* l, const Periphery* io, const float* x, const float* matrices,
                        const float* bias, const int64_t* assignment, float* y) {
    return analog_forward(*l, *io, x, matrices, bias, assignment, y);
}
int rapa_analog_backward(const Layer* l, const Periphery* io, const float* grad,
                         const float* matrices, const int64_t* assignment, float* grad_x) {
    return analog_backward(*l, *io, grad, matrices, assignment, grad_x);
}
int rapa_pulsed_update(const Layer* l, const Pulses* p, const Steps* steps, const float* x,
                       const float* grad, const int64_t* assignment, const float* signs,
                       float* weight, float* read, const float* step_up, const float* step_down, const float* w_max,
                       const float* w_min, const float* shape_up, const float* shape_down,
                       const float* reference) {
    return pulsed_update(*l, *p, x, grad, assignment, signs,
                         {weight, step_up, step_down, w_max, w_min, shape_up, shape_down,
                          reference, read, steps});
}
// Move n devices by whole numbers of pulses, on one thread.
int rapa_scan_pulses(const Steps* steps, int64_t n, uint64_t seed, const float* up,
                     const float* down, float* weight, float* read, const float* step_up,
                     const float* step_down, const float* w_max, const float* w_min,
                     const float* shape_up, const float* shape_down, const float* reference) {
    const Devices devices{weight, step_up, step_down, w_max, w_min, shape_up, shape_down,
                          reference, read, steps};
    constexpr int64_t part = 64 * WIDTH;
    std::vector<float> u(part), v(part);
    for (int64_t i = 0; i < n; i += part) {
        const int64_t width = std::min(part, n - i);
        std::fill(u.begin(), u.end(), 0.0f), std::fill(v.begin(), v.end(), 0.0f);
        std::copy_n(up + i, width, u.begin()), std::copy_n(down + i, width, v.begin());
        Random random(seed, i);
        move_all(devices, i, width, u.data(), v.data(), 0, random);
    }
    return 1;
}
}
