// Products of one warpgroup, as attention has them: scores = a b^T, and sums = weights b, where the weights are the scores as bf16.
// Afterwards the tile of b is fetched again, without values, and its product adds nothing.
#include "wgmma.cuh"

constexpr int WIDTH = 128, ROWS = 64, COLUMNS = 96;

extern "C" __global__ void __launch_bounds__(WARPGROUP) wgmma_products(const bf16* a, const bf16* b, float* scores, float* sums) {
  char* as = tiles_in_shared_memory();
  char* bs = as + ROWS * 2 * WIDTH;
  fetch<WIDTH, ROWS, WARPGROUP>(as, a, WIDTH, 0, ROWS);
  fetch<WIDTH, COLUMNS, WARPGROUP>(bs, b, WIDTH, 0, COLUMNS);
  copy_async_commit();
  copy_async_wait<0>();
  wgmma_publish();
  __syncthreads();

  float score[COLUMNS / 8][4], sum[WIDTH / 8][4];
  unsigned weights[COLUMNS / 16][4];
  wgmma_begin();
  multiply_rows<WIDTH, ROWS, COLUMNS>(score, as, bs);
  wgmma_commit();
  wgmma_wait<0>();  // for the scores
  to_weights(weights, score);
  wgmma_begin();
  add_weighted_rows<WIDTH, COLUMNS>(sum, weights, bs, false);
  wgmma_commit();
  wgmma_wait<0>();  // for the sums
  __syncthreads();
  fetch<WIDTH, COLUMNS, WARPGROUP>(bs, b, WIDTH, 0, 0);
  copy_async_commit();
  copy_async_wait<0>();
  wgmma_publish();
  __syncthreads();
  wgmma_begin();
  add_weighted_rows<WIDTH, COLUMNS>(sum, weights, bs, true);
  wgmma_commit();
  wgmma_wait<0>();

  const Lane lane = lane_of_thread();
  for (int h = 0; h < 2; ++h) {
    const int row = lane.warp * 16 + h * 8 + lane.group;
    for (int n = 0; n < COLUMNS / 8; ++n)
      for (int i = 0; i < 2; ++i) scores[row * COLUMNS + n * 8 + lane.pair * 2 + i] = score[n][2 * h + i];
    for (int n = 0; n < WIDTH / 8; ++n)
      for (int i = 0; i < 2; ++i) sums[row * WIDTH + n * 8 + lane.pair * 2 + i] = sum[n][2 * h + i];
  }
}
