// The windows of a convolution over a picture, channels last: a row for each output pixel, zeros outside the picture.
//
//   H, W rows and columns of pixels   C channels   S side of a window
#include "values.cuh"

// The input pixel of a tap along one axis, or -1.
DEVICE int source(int at, int tap, int side, int stride, int before, int repeats) {
  const int seen = stride * at + tap - before;
  return seen >= 0 && seen / repeats < side ? seen / repeats : -1;
}

// out [pixels, S S C]; output pixels are counted from `first` on, row by row, `columns` in a row.
extern "C" __global__ void __launch_bounds__(256) windows(const activation* x, activation* out, int height, int width, int channels,
                                                          int first, int pixels, int columns, int side, int stride, int before,
                                                          int repeats) {
  const Place p = place_in_rows<1>(pixels, side * side * channels);
  if (!p.there) return;
  const int pixel = first + p.row, tap = p.column / channels, channel = p.column % channels;
  const int row = source(pixel / columns, tap / side, height, stride, before, repeats);
  const int column = source(pixel % columns, tap % side, width, stride, before, repeats);
  const bool there = row >= 0 && column >= 0;
  out[at(p.row, side * side * channels, p.column)] =
      there ? x[at(row * width + column, channels, channel)] : from_float<activation>(0.0f);
}
