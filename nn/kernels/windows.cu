// The windows of a convolution over a picture, channels last: a row for each output pixel, zeros outside the picture; and their backward.
//
//   H, W rows and columns of pixels   C channels   S side of a window
#include "values.cuh"

struct Picture {
  const activation* x;
  int height, width, channels;
};
struct Window {
  int side, stride, before, repeats;
};

// The input pixel of a tap along one axis, or -1.
DEVICE int source(int at, int tap, int side, const Window& w) {
  const int seen = w.stride * at + tap - w.before;
  return seen >= 0 && seen / w.repeats < side ? seen / w.repeats : -1;
}
// Where a value of the row of output pixel (row, column) stands in the picture; null outside.
DEVICE const activation* value_of(const Picture& p, const Window& w, int row, int column, int value) {
  const int tap = value / p.channels;
  const int from_row = source(row, tap / w.side, p.height, w), from_column = source(column, tap % w.side, p.width, w);
  if (from_row < 0 || from_column < 0) return nullptr;
  return p.x + at(from_row * p.width + from_column, p.channels, value % p.channels);
}

// out [pixels, S S C]; output pixels are counted from `first` on, row by row, `columns` in a row. `wide`: what a thread has is of one tap,
// and stands at multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(256) windows(const activation* x, activation* out, int height, int width, int channels,
                                                          int first, int pixels, int columns, int side, int stride, int before,
                                                          int repeats, int wide) {
  const Place p = place_in_rows<WIDE>(pixels, side * side * channels, wide);
  if (!p.there) return;
  const Picture picture = {x, height, width, channels};
  const Window window = {side, stride, before, repeats};
  const int row = (first + p.row) / columns, column = (first + p.row) % columns;
  float v[WIDE];
  if (p.wide) {
    const activation* from = value_of(picture, window, row, column, p.column);
    load_wide(from, v, from ? p.left : 0, from != nullptr);
  } else {
#pragma unroll
    for (int k = 0; k < WIDE; ++k) {
      const activation* from = k < p.left ? value_of(picture, window, row, column, p.column + k) : nullptr;
      v[k] = from ? to_float(*from) : 0.0f;
    }
  }
  store_wide(out + at(p.row, side * side * channels, p.column), v, p.left, p.wide);
}

// Backward: every input pixel gathers, in the order of the taps, the cotangents of those windows that have it. `rows` and `columns` are
// those of the output, of whose pixels `pixels` are there from `first` on: dy [pixels, S S C]. Adds to dx with `accumulate`.
extern "C" __global__ void __launch_bounds__(256) windows_backward(const activation* dy, activation* dx, int height, int width,
                                                                   int channels, int first, int pixels, int rows, int columns, int side,
                                                                   int stride, int before, int repeats, int accumulate, int wide) {
  const Place p = place_in_rows<WIDE>(height * width, channels, wide);
  if (!p.there) return;
  const int y = p.row / width, x = p.row % width;
  const long long to = at(p.row, channels, p.column);
  float sums[WIDE] = {};
  if (accumulate) load_wide(dx + to, sums, p.left, p.wide);
  for (int tap = 0; tap < side * side; ++tap) {
    for (int copy = 0; copy < repeats * repeats; ++copy) {
      const int row = y * repeats + copy / repeats + before - tap / side, column = x * repeats + copy % repeats + before - tap % side;
      if (row < 0 || column < 0 || row % stride || column % stride) continue;
      if (row / stride >= rows || column / stride >= columns) continue;
      const int output = row / stride * columns + column / stride - first;
      if (output < 0 || output >= pixels) continue;
      float v[WIDE];
      load_wide(dy + at(output, side * side * channels, tap * channels + p.column), v, p.left, p.wide);
#pragma unroll
      for (int k = 0; k < WIDE; ++k) sums[k] += v[k];
    }
  }
  store_wide(dx + to, sums, p.left, p.wide);
}
