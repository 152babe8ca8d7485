// Products of small matrices of bfloat16 that sum in float32, on the CPU's matrix units (AMX) or its
// vector units (AVX512_BF16), and the reordering of numbers that both want. Included, not compiled by
// itself.
//
// Everything is cut into squares. Of A a square is 16 rows of 32 numbers of 16 bits; of B it is 32
// rows and 16 columns, two neighbouring rows interleaved: [row pair][column][2], 1 KB in one stretch;
// of C it is 16 rows and 16 columns of float32.

#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

typedef uint16_t bf16;  // the upper half of a float's bits

constexpr int SIDE = 16, DEPTH = 32;      // rows or columns of a square; numbers summed over in one
constexpr int SQUARE_B = SIDE * DEPTH;    // numbers of a square of B
constexpr int SQUARE_C = SIDE * SIDE;     // and of C

enum Units { NONE = 0, VECTOR = 1, MATRIX = 2 };

// C = start + A · B, for R × C squares of C and `steps` squares of A and B along what is summed over.
// Strides are in bytes: of rows within a square, from step to step, and from square to square.
struct Multiplication {
    const bf16* a;
    int64_t a_row, a_step, a_square;
    const bf16* b;
    int64_t b_step, b_square;
    int64_t steps;
    float* c;
    int64_t c_row, c_square_row, c_square_column;
    const float* start;  // null: zero
    int64_t start_row, start_square_row, start_square_column;
};

template <class T>
inline T* shifted(T* pointer, int64_t bytes) {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
}

#if defined(__AVX512BF16__)

#if defined(__AMX_BF16__)

// The compiler's own intrinsics do not tell it that loading reads memory.
#define TILE_LOAD(tile, from, stride)                                                         \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(stride)) : "memory")
#define TILE_STORE(tile, to, stride)                                                          \
    asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define TILE_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

inline void configure_tiles() {
    TileShapes shapes;
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = SIDE;
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
inline void release_tiles() { asm volatile("tilerelease" ::); }

// A sanitizer does not see what tiles load and store: touch the ends of their rows for it.
inline void touch([[maybe_unused]] const void* square, [[maybe_unused]] int64_t stride) {
#if defined(__SANITIZE_ADDRESS__)
    for (int64_t r = 0; r < SIDE; r++)
        for (int64_t end : {int64_t(0), int64_t(63)})
            (void)*shifted(static_cast<const volatile char*>(square), r * stride + end);
#endif
}

template <int R, int C>
void multiply_on_tiles(const Multiplication& m) {
    const float* start = m.start;
    float* c = m.c;
#define EACH_C(DO)                                                                             \
    DO(0, 0, 0);                                                                               \
    if constexpr (C > 1) DO(1, 0, 1);                                                          \
    if constexpr (R > 1) DO(2, 1, 0);                                                          \
    if constexpr (R > 1 && C > 1) DO(3, 1, 1)
#define LOAD_C(tile, i, j)                                                                     \
    {                                                                                          \
        const float* from = shifted(start, i * m.start_square_row + j * m.start_square_column); \
        touch(from, m.start_row);                                                              \
        TILE_LOAD(tile, from, m.start_row);                                                    \
    }
#define STORE_C(tile, i, j)                                                                    \
    {                                                                                          \
        float* to = shifted(c, i * m.c_square_row + j * m.c_square_column);                    \
        touch(to, m.c_row);                                                                    \
        TILE_STORE(tile, to, m.c_row);                                                         \
    }
#define ZERO_C(tile, i, j) TILE_ZERO(tile)
    if (start) {
        EACH_C(LOAD_C);
    } else {
        EACH_C(ZERO_C);
    }
    const bf16 *a = m.a, *b = m.b;
    for (int64_t s = 0; s < m.steps; s++) {
        touch(a, m.a_row);
        touch(b, 64);
        TILE_LOAD(6, b, 64);
        TILE_LOAD(4, a, m.a_row);
        TILE_MULTIPLY(0, 4, 6);
        if constexpr (C > 1) {
            touch(shifted(b, m.b_square), 64);
            TILE_LOAD(7, shifted(b, m.b_square), 64);
            TILE_MULTIPLY(1, 4, 7);
        }
        if constexpr (R > 1) {
            touch(shifted(a, m.a_square), m.a_row);
            TILE_LOAD(5, shifted(a, m.a_square), m.a_row);
            TILE_MULTIPLY(2, 5, 6);
            if constexpr (C > 1) TILE_MULTIPLY(3, 5, 7);
        }
        a = shifted(a, m.a_step);
        b = shifted(b, m.b_step);
    }
    EACH_C(STORE_C);
#undef EACH_C
#undef LOAD_C
#undef STORE_C
#undef ZERO_C
}

// Whether the kernel of the operating system lets this process use tiles; it has to be asked.
inline bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool permitted =
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return permitted;
#else
    return false;
#endif
}

#else
inline void configure_tiles() {}
inline void release_tiles() {}
inline bool tiles_permitted() { return false; }
template <int R, int C>
void multiply_on_tiles(const Multiplication&) {}
#endif

// Eight rows and C squares at a time, whose sums stay in registers.
template <int R, int C>
void multiply_on_vectors(const Multiplication& m) {
    constexpr int ROWS_AT_ONCE = 8;
    for (int64_t first = 0; first < R * SIDE; first += ROWS_AT_ONCE) {
        const int64_t square = first / SIDE, row = first % SIDE;
        __m512 sum[ROWS_AT_ONCE][C];
        const float* start = shifted(m.start, square * m.start_square_row + row * m.start_row);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++)
#pragma GCC unroll 2
            for (int c = 0; c < C; c++)
                sum[r][c] = m.start ? _mm512_loadu_ps(shifted(
                                          start, r * m.start_row + c * m.start_square_column))
                                    : _mm512_setzero_ps();
        for (int64_t s = 0; s < m.steps; s++) {
            const bf16* a = shifted(m.a, square * m.a_square + row * m.a_row + s * m.a_step);
            const bf16* b = shifted(m.b, s * m.b_step);
            for (int64_t pair = 0; pair < DEPTH / 2; pair++) {
                __m512bh of_b[C];
#pragma GCC unroll 2
                for (int c = 0; c < C; c++)
                    of_b[c] = (__m512bh)_mm512_loadu_si512(shifted(b, c * m.b_square + pair * 64));
#pragma GCC unroll 8
                for (int r = 0; r < ROWS_AT_ONCE; r++) {
                    int32_t both;
                    std::memcpy(&both, shifted(a, r * m.a_row + pair * 4), sizeof both);
                    const __m512bh of_a = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 2
                    for (int c = 0; c < C; c++)
                        sum[r][c] = _mm512_dpbf16_ps(sum[r][c], of_a, of_b[c]);
                }
            }
        }
        float* to = shifted(m.c, square * m.c_square_row + row * m.c_row);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++)
#pragma GCC unroll 2
            for (int c = 0; c < C; c++)
                _mm512_storeu_ps(shifted(to, r * m.c_row + c * m.c_square_column), sum[r][c]);
    }
}

template <int R, int C>
void multiply(const Multiplication& m, int64_t units) {
    if (units == MATRIX)
        multiply_on_tiles<R, C>(m);
    else
        multiply_on_vectors<R, C>(m);
}

// rows and columns: squares of C, 1 or 2 each.
inline void multiply(const Multiplication& m, int64_t rows, int64_t columns, int64_t units) {
    if (rows > 1)
        columns > 1 ? multiply<2, 2>(m, units) : multiply<2, 1>(m, units);
    else
        columns > 1 ? multiply<1, 2>(m, units) : multiply<1, 1>(m, units);
}

inline __mmask16 first_of_16(int64_t n) { return n >= 16 ? 0xffff : (1u << (n < 0 ? 0 : n)) - 1; }
inline __mmask32 first_of_32(int64_t n) {
    return n >= 32 ? 0xffffffffu : (1u << (n < 0 ? 0 : n)) - 1;
}

// Two rows of 16 numbers as one of 16 pairs.
inline __m512i interleaved(__m256i first, __m256i second) {
    alignas(64) static constexpr uint16_t ORDER[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(
        _mm512_load_si512(ORDER),
        _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
}

// Two vectors of 16 floats as 32 numbers of 16 bits, rounded to nearest.
inline __m512i rounded(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// Rows of 16 words of 32 bits become columns.
inline void transpose_16(__m512i (&rows)[16]) {
    __m512i a[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // Now rows[4 i + j] holds, in its quarter q, column 4 q + j of rows 4 i … 4 i + 3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i low_01 = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x44);
        const __m512i high_01 = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xee);
        const __m512i low_23 = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x44);
        const __m512i high_23 = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xee);
        a[j] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
        a[4 + j] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
        a[8 + j] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
        a[12 + j] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) rows[i] = a[i];
}

#endif

}  // namespace
