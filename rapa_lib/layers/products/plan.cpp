// Where the patches of a layer lie, padded images, and patches sorted by tile: what the products of
// every type share. Included, not compiled by itself.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

extern "C" {

// Everything but the tensors; compiled.py declares the same fields.
struct Layer {
    int64_t batch, channels, height, width;          // of the input
    int64_t padded_height, padded_width, top, left;  // of the padded input
    int64_t out_height, out_width, out_channels;     // of the output
    int64_t kernel_height, kernel_width, stride_h, stride_w, dilation_h, dilation_w;
    int64_t stride_n, stride_c, stride_y, stride_x;  // of the input tensor, in numbers
    int64_t n_tiles, assignment_stride, threads, buffer_bytes;
    int64_t groups = 1, units = 0;  // units: what multiplies bfloat16, see matrix_units.cpp
};
}

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, ROWS = 8;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, ROWS = 4;
#else
constexpr int VECTOR_BYTES = 16, ROWS = 4;
#endif
constexpr int VECTORS = 2;  // neighbouring vectors in a product
constexpr int BLOCK = 128;  // patches of a tile that are handled at once, if there are so many

template <class T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int COLUMNS = VECTORS * LANES<T>;

// Memory that begins at a cache line.
template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t n) {
        return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)));
    }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
    bool operator==(const LineAllocator&) const { return true; }
};
template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

inline int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Where things lie in the padded buffer of an image, in numbers. A patch is that of one group: of its
// first group here, `group * group_channels` numbers further on of another.
template <class T>
struct Plan {
    const Layer& layer;
    int64_t n_patches, image_size, n_stretches, length, n_inputs, out_padded;
    int64_t group_channels, group_outputs;
    uint64_t per_patch;  // 2⁶⁴ / n_patches, rounded up: divides numbers below 2³² exactly
    std::vector<int64_t> starts, stretches;  // of a patch in an image; of a stretch in a patch

    explicit Plan(const Layer& l) : layer(l) {
        n_patches = l.out_height * l.out_width;
        per_patch = n_patches > 1 ? ~uint64_t(0) / uint64_t(n_patches) + 1 : 0;
        image_size = l.padded_height * l.padded_width * l.channels;
        group_channels = l.channels / l.groups;
        group_outputs = l.out_channels / l.groups;
        const bool whole = l.dilation_w == 1 && l.groups == 1;  // a kernel's row is one stretch
        const int64_t pieces = whole ? 1 : l.kernel_width;
        length = l.kernel_width / pieces * group_channels;
        n_stretches = l.kernel_height * pieces;
        n_inputs = n_stretches * length;
        out_padded = parts_of(group_outputs, COLUMNS<T>) * COLUMNS<T>;
        const int64_t row = l.padded_width * l.channels;
        for (int64_t y = 0; y < l.out_height; y++)
            for (int64_t x = 0; x < l.out_width; x++)
                starts.push_back(y * l.stride_h * row + x * l.stride_w * l.channels);
        for (int64_t i = 0; i < l.kernel_height; i++)
            for (int64_t j = 0; j < pieces; j++)
                stretches.push_back(i * l.dilation_h * row + j * l.dilation_w * l.channels);
    }

    // Outputs that do not fill the last vectors, and those of a group, need a copy of the kernel
    // matrix whose rows are these alone.
    bool ragged() const { return out_padded != layer.out_channels; }

    // Images that a thread handles at once: so many that a tile has BLOCK patches of them, as
    // long as they fit its share of the buffers.
    int64_t chunk() const {
        const int64_t wanted = parts_of(BLOCK * layer.n_tiles, n_patches);
        const int64_t fitting = layer.buffer_bytes / layer.threads / (image_size * sizeof(T));
        const int64_t share = parts_of(layer.batch, layer.threads);
        return std::max<int64_t>(1, std::min({wanted, fitting, share}));
    }

    const T* patch(const T* padded, int32_t id) const {
        // Dividing takes longer than gathering a small patch.
        const int64_t image =
            n_patches > 1 ? int64_t((unsigned __int128)(uint32_t(id)) * per_patch >> 64) : id;
        return padded + image * image_size + starts[id - image * n_patches];
    }
};

// The patches of some images, sorted by tile: those of tile t are ids[first[t]] … ids[first[t + 1] - 1].
struct Sorted {
    std::vector<int64_t> first;
    std::vector<int32_t> ids;

    void sort(const Layer& l, const int64_t* assignment, int64_t begin, int64_t count) {
        const int64_t n_patches = l.out_height * l.out_width;
        first.assign(l.n_tiles + 2, 0);
        ids.resize(count * n_patches);
        assignment += begin * l.assignment_stride;
        for (int64_t i = 0; i < count; i++)
            for (int64_t p = 0; p < n_patches; p++)
                first[assignment[i * l.assignment_stride + p] + 2]++;
        first[1] = 0;  // tile -1 is no tile
        for (int64_t t = 1; t <= l.n_tiles; t++) first[t + 1] += first[t];
        // first[t + 1] moves from the beginning of tile t to its end, the beginning of t + 1.
        int32_t id = 0;
        for (int64_t i = 0; i < count; i++)
            for (int64_t p = 0; p < n_patches; p++, id++) {
                const int64_t tile = assignment[i * l.assignment_stride + p];
                if (tile >= 0) ids[first[tile + 1]++] = id;
            }
        first[0] = 0;
    }
};

template <class T>
T* padded_row(const Layer& l, T* padded, int64_t image_size, int64_t image, int64_t y) {
    return padded + image * image_size + ((y + l.top) * l.padded_width + l.left) * l.channels;
}

template <class T>
void pad(const Plan<T>& plan, const T* x, int64_t begin, int64_t count, T* padded) {
    const Layer& l = plan.layer;
    const bool channels_last = l.stride_c == 1 && l.stride_x == l.channels;
    for (int64_t i = 0; i < count; i++)
        for (int64_t y = 0; y < l.height; y++) {
            const T* from = x + (begin + i) * l.stride_n + y * l.stride_y;
            T* to = padded_row(l, padded, plan.image_size, i, y);
            if (channels_last) {
                std::copy_n(from, l.width * l.channels, to);
                continue;
            }
            for (int64_t c = 0; c < l.channels; c++)
                for (int64_t w = 0; w < l.width; w++)
                    to[w * l.channels + c] = from[w * l.stride_x + c * l.stride_c];
        }
}

template <class T>
void unpad(const Plan<T>& plan, T* padded, int64_t begin, int64_t count, T* images) {
    const Layer& l = plan.layer;
    const int64_t row = l.width * l.channels;
    for (int64_t i = 0; i < count; i++)
        for (int64_t y = 0; y < l.height; y++)
            std::copy_n(padded_row(l, padded, plan.image_size, i, y), row,
                        images + ((begin + i) * l.height + y) * row);
}

// Ask for the outputs of n patches, or for their gradients, before they are needed: they lie anywhere.
template <bool TO_WRITE, class T>
void prefetch_rows(const Plan<T>& plan, const void* rows, int64_t item, const int32_t* ids,
                   int64_t n) {
    const int64_t row = plan.layer.out_channels * item, end = plan.group_outputs * item;
    for (int64_t r = 0; r < n; r++)
        for (int64_t byte = 0; byte < end; byte += 64)
            __builtin_prefetch(static_cast<const char*>(rows) + ids[r] * row + byte, TO_WRITE);
}

// Each tile's kernel matrix in the form that a product wants. Where several chunks of images will
// ask for it, it is made once for all; else by the thread that asks, into its own buffer.
template <class T>
class Prepared {
public:
    using Prepare = void (*)(const Plan<T>&, const T*, T*);

    Prepared(const Plan<T>& plan, const T* matrices, int64_t n_chunks, int64_t size, Prepare prepare)
        : plan(plan), matrices(matrices), size(size), prepare(prepare) {
        if (!prepare || n_chunks <= plan.layer.threads) return;
        const int64_t groups = plan.layer.groups, n = plan.layer.n_tiles * groups;
        all.resize(n * size);
#pragma omp parallel for num_threads(plan.layer.threads)
        for (int64_t i = 0; i < n; i++)
            prepare(plan, raw(i / groups, i % groups), all.data() + i * size);
    }

    template <class Memory>
    const T* operator()(int64_t tile, Memory& buffer, int64_t group = 0) const {
        if (!prepare) return raw(tile, group);
        if (!all.empty()) return all.data() + (tile * plan.layer.groups + group) * size;
        buffer.resize(size);
        prepare(plan, raw(tile, group), buffer.data());
        return buffer.data();
    }

private:
    const T* raw(int64_t tile, int64_t group) const {
        return matrices + tile * plan.n_inputs * plan.layer.out_channels +
               group * plan.group_outputs;
    }
    const Plan<T>& plan;
    const T* matrices;
    int64_t size;
    Prepare prepare;
    Buffer<T> all;
};

}  // namespace
