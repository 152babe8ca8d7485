"""The GPU's part of the three products, in Triton: what one program of each kernel computes.

Imported by :mod:`rapa_lib.layers.products.gpu` alone, and only where Triton is. Patches come sorted
by tile, so that the patches of a program share their kernel matrix; a program gathers them from the
image as it multiplies, and the unfolded input never exists. Every number of a result is written by
exactly one program, which adds up in an order that depends on shapes and on the assignment alone:
no atomics, the same bits again.

Tensors are contiguous but for the images x, which come with their strides: kernel matrices
(T, kh * kw * C/g, O), outputs and their gradients (patches, O). A key is one number of a patch,
counted (kernel row, kernel column, channel of the group). Names in capitals are compile-time
constants, among them the numbers of rows, columns and depth of the blocks that are multiplied.

``WIDEN`` is for Triton's interpreter, which keeps bfloat16 as integers of 16 bits and would
multiply these (triton-lang/triton, issue 11584): numbers become float32 before the product, which
changes nothing, as products of two bfloat16 numbers are exact there.
"""

import triton
import triton.language as tl


@triton.jit
def place(
    patch, n_patches, out_width, stride_h, stride_w, top, left, stride_n, stride_y, stride_x
):  # fmt: skip
    """First row and column of patches in their images, and where these lie in memory."""
    position = patch % n_patches
    y = position // out_width * stride_h - top
    x = position % out_width * stride_w - left
    start = patch // n_patches * stride_n + y * stride_y + x * stride_x
    return y.to(tl.int32), x.to(tl.int32), start


@triton.jit
def split(key, dilation_h, dilation_w, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Row and column, in pixels from a patch's first, and channel of keys."""
    tap = key // CHANNELS
    return tap // WIDTH * dilation_h, tap % WIDTH * dilation_w, key % CHANNELS


@triton.jit
def forward(
    x, weight, bias, order, tiles, starts, stops, y,
    outputs, height, width, n_patches, out_width, stride_h, stride_w, top, left,
    dilation_h, dilation_w, stride_n, stride_c, stride_y, stride_x,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Outputs of ROWS patches of one tile, COLUMNS of a group; zeros where the tile is -1."""
    block = tl.program_id(0)
    start, stop = tl.load(starts + block), tl.load(stops + block)
    if start >= stop:
        return
    tile = tl.load(tiles + block)
    group = tl.program_id(1) // COLUMN_BLOCKS
    column = tl.program_id(1) % COLUMN_BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
    output, is_output = group * OUTPUTS + column, column < OUTPUTS
    row = start + tl.arange(0, ROWS)
    is_row = row < stop
    patch = tl.load(order + row, mask=is_row, other=0)
    top_row, left_column, first = place(
        patch, n_patches, out_width, stride_h, stride_w, top, left, stride_n, stride_y, stride_x
    )
    x += group.to(tl.int64) * CHANNELS * stride_c
    weight += tile * KEYS * outputs
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for k in range(0, tl.where(tile >= 0, KEYS, 0), DEPTH):
        key = k + tl.arange(0, DEPTH)
        down, across, channel = split(key, dilation_h, dilation_w, CHANNELS, WIDTH)
        line, spot = top_row[:, None] + down[None, :], left_column[:, None] + across[None, :]
        inside = (line >= 0) & (line < height) & (spot >= 0) & (spot < width)
        offset = channel.to(tl.int64) * stride_c + down.to(tl.int64) * stride_y
        offset += across.to(tl.int64) * stride_x
        a = tl.load(
            x + (first[:, None] + offset[None, :]),
            mask=inside & is_row[:, None] & (key < KEYS)[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            weight + (key.to(tl.int64)[:, None] * outputs + output[None, :]),
            mask=(key < KEYS)[:, None] & is_output[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if HAS_BIAS:
        shift = tl.load(bias + tile * outputs + output, mask=is_output & (tile >= 0), other=0.0)
        total += shift.to(tl.float32)[None, :]
    tl.store(
        y + (patch[:, None] * outputs + output[None, :]), total.to(y.dtype.element_ty),
        mask=is_row[:, None] & is_output[None, :],
    )  # fmt: skip


@triton.jit
def grad_patches(
    grad, weight, order, tiles, starts, stops, patches, outputs,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Derivatives by ROWS patches of one tile, COLUMNS keys of a group, in float32.

    They go to ``patches`` (patches, kh, kw, C), zeros where the tile is -1.
    """
    block = tl.program_id(0)
    start, stop = tl.load(starts + block), tl.load(stops + block)
    if start >= stop:
        return
    tile = tl.load(tiles + block)
    group = tl.program_id(1) // COLUMN_BLOCKS
    key = tl.program_id(1) % COLUMN_BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
    is_key = key < KEYS
    row = start + tl.arange(0, ROWS)
    is_row = row < stop
    patch = tl.load(order + row, mask=is_row, other=0)
    weight += tile * KEYS * outputs
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for o in range(0, tl.where(tile >= 0, OUTPUTS, 0), DEPTH):
        column = o + tl.arange(0, DEPTH)
        output, is_output = group * OUTPUTS + column, column < OUTPUTS
        a = tl.load(
            grad + (patch[:, None] * outputs + output[None, :]),
            mask=is_row[:, None] & is_output[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            weight + (key.to(tl.int64)[None, :] * outputs + output[:, None]),
            mask=is_key[None, :] & is_output[:, None], other=0.0,
        )  # fmt: skip
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    target = (key // CHANNELS * GROUPS + group) * CHANNELS + key % CHANNELS
    tl.store(
        patches + (patch[:, None] * (KEYS * GROUPS) + target[None, :]), total,
        mask=is_row[:, None] & is_key[None, :],
    )  # fmt: skip


@triton.jit
def fold(
    patches, grad_x, numbers, channels, height, width, out_height, out_width,
    stride_h, stride_w, top, left, dilation_h, dilation_w,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """SIZE numbers of the derivative by the input (N, H, W, C).

    Each is the sum of what the kernel's positions, one after another, give it.
    """
    number = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    is_number = number < numbers
    channel, pixel = number % channels, number // channels
    x, y = pixel % width + left, pixel // width % height + top
    image = pixel // width // height
    total = tl.full((SIZE,), 0.0, tl.float32)
    for tap in range(TAPS):
        down, across = y - tap // WIDTH * dilation_h, x - tap % WIDTH * dilation_w
        row, column = down // stride_h, across // stride_w
        inside = (down >= 0) & (row < out_height) & (row * stride_h == down)
        inside &= (across >= 0) & (column < out_width) & (column * stride_w == across)
        patch = (image * out_height + row) * out_width + column
        source = (patch * TAPS + tap) * channels + channel
        total += tl.load(patches + source, mask=is_number & inside, other=0.0)
    tl.store(grad_x + number, total.to(grad_x.dtype.element_ty), mask=is_number)


@triton.jit
def grad_weight(
    grad, x, order, bounds, matrices, biases, n_tiles,
    outputs, height, width, n_patches, out_width, stride_h, stride_w, top, left,
    dilation_h, dilation_w, stride_n, stride_c, stride_y, stride_x,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, OUTPUTS: tl.constexpr,
    SHARES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """ROWS keys and COLUMNS outputs of a tile's derivative, over one of SHARES of its patches.

    Results: (SHARES, T, keys, O) and (SHARES, T, O). Patches are added DEPTH at a time, in order.
    """
    tile, share = tl.program_id(0) // SHARES, tl.program_id(0) % SHARES
    group = tl.program_id(2) // COLUMN_BLOCKS
    column = tl.program_id(2) % COLUMN_BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
    output, is_output = group * OUTPUTS + column, column < OUTPUTS
    key = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_key = key < KEYS
    down, across, channel = split(key, dilation_h, dilation_w, CHANNELS, WIDTH)
    offset = channel.to(tl.int64) * stride_c + down.to(tl.int64) * stride_y
    offset += across.to(tl.int64) * stride_x
    x += group.to(tl.int64) * CHANNELS * stride_c
    start, end = tl.load(bounds + tile), tl.load(bounds + tile + 1)
    length = (end - start + SHARES * DEPTH - 1) // (SHARES * DEPTH) * DEPTH
    start += share * length
    stop = tl.minimum(start + length, end)
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    by_bias = tl.full((DEPTH, COLUMNS), 0.0, tl.float32)
    for p in range(start, stop, DEPTH):
        row = p + tl.arange(0, DEPTH)
        is_row = row < stop
        patch = tl.load(order + row, mask=is_row, other=0)
        top_row, left_column, first = place(
            patch, n_patches, out_width, stride_h, stride_w, top, left, stride_n, stride_y, stride_x
        )
        line, spot = top_row[None, :] + down[:, None], left_column[None, :] + across[:, None]
        inside = (line >= 0) & (line < height) & (spot >= 0) & (spot < width)
        a = tl.load(
            x + (first[None, :] + offset[:, None]),
            mask=inside & is_row[None, :] & is_key[:, None], other=0.0,
        )  # fmt: skip
        b = tl.load(
            grad + (patch[:, None] * outputs + output[None, :]),
            mask=is_row[:, None] & is_output[None, :], other=0.0,
        )  # fmt: skip
        by_bias += b.to(tl.float32)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    result = (share * n_tiles + tile).to(tl.int64)
    tl.store(
        matrices + ((result * KEYS + key)[:, None] * outputs + output[None, :]),
        total.to(matrices.dtype.element_ty), mask=is_key[:, None] & is_output[None, :],
    )  # fmt: skip
    tl.store(
        biases + (result * outputs + output), tl.sum(by_bias, 0).to(biases.dtype.element_ty),
        mask=is_output & (tl.program_id(1) == 0),
    )  # fmt: skip
