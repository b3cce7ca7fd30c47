#!/usr/bin/env python3
"""Breaks the kernels of nn/kernels in one place at a time, and says whether nn/tests/devices notices.

    scripts/mutate-kernels.py [--jobs N] [--only TEXT] [--list]

Each mutant runs on the stand-in for the CUDA driver twice: as it is ("values": do the tests see wrong numbers?) and with every access
checked ("checks": does the stand-in find the access?). A mutant that neither notices is a test that is missing, or a line that is not
needed. --only takes the mutants whose file or name has this text. Ends with 1 where a mutant is not noticed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "nn" / "kernels"
SECONDS = 1800
CHECKED = {"STANDIN_CHECK": "1", "STANDIN_SEED": "2"}

# Tests for each file. Those of the headers are the ones that use most of them.
TESTS = {
    "attention_forward.cu": ["attention::attention"],
    "attention_backward.cu": ["attention::attention"],
    "tensor.cuh": ["attention::attention"],
    "attention_wgmma_forward.cu": ["attention::attention"],
    "attention_wgmma_backward.cu": ["attention::attention"],
    "wgmma.cuh": ["attention::attention"],
    "attention_plain.cu": ["attention::attention"],
    "heads.cu": ["attention::heads"],
    "norm.cu": ["norms::modulated", "pointwise::gates"],
    "sums.cuh": ["norms::", "pointwise::gates", "optimizer::sums"],
    "values.cuh": ["pointwise::", "norms::modulated", "attention::heads", "alignment::"],
    "device.cuh": ["norms::", "alignment::conversions", "attention::heads"],
    "pointwise.cu": ["pointwise::", "products::factors", "products::products_of_long", "products::a_linear", "alignment::neighbouring", "alignment::converted"],
    "scores.cu": ["norms::cosine"],
    "norm_rows.cu": ["norms::norms_with", "alignment::norms"],
    "windows.cu": ["pictures::", "alignment::windows"],
    "optimizer.cu": ["optimizer::"],
    "factors.cu": ["factors::", "products::gradients"],
}

# Compute capability of a GPU that uses the file, where it is not the stand-in's own.
CAPABILITIES = {"attention_forward.cu": "80", "attention_backward.cu": "80", "tensor.cuh": "80"}

# File, what is broken, which occurrence of the text, the text, and what takes its place.
F, B, T, P = "attention_forward.cu", "attention_backward.cu", "tensor.cuh", "attention_plain.cu"
WF, WB, W = "attention_wgmma_forward.cu", "attention_wgmma_backward.cu", "wgmma.cuh"
WAIT = "copy_async_wait<0>();"
BARRIER = "__syncthreads();"
PUBLISH = "wgmma_publish();"
MUTANTS = [
    (F, "no barrier after the keys", 0, BARRIER, ""),
    (F, "no barrier after the values", 1, BARRIER, ""),
    (F, "keys not waited for", 0, WAIT, "copy_async_wait<1>();"),
    (F, "values not waited for", 1, WAIT, "copy_async_wait<1>();"),
    (F, "the next keys are these", 0, "k + at(key + TILE, D, 0)", "k + at(key, D, 0)"),
    (F, "rows past the end of the keys", 0, "0, keys - key - TILE);", "0, TILE);"),
    (F, "rows past the end of the values", 0, "0, keys - key);", "0, TILE);"),
    (F, "as many keys as queries", 0, "key < keys; key += TILE", "key < tokens; key += TILE"),
    (F, "as many keys of the first tile as queries", 0, "fetch<D, TILE>(ks, k, D, 0, keys);", "fetch<D, TILE>(ks, k, D, 0, tokens);"),
    (F, "a mask for as many keys as queries", 0, "left = keys - key", "left = tokens - key"),
    (F, "keys of another head", 0, "k += at(blockIdx.y, keys * D, 0)", "k += at(blockIdx.y, tokens * D, 0)"),
    (F, "values of another head", 0, "v += at(blockIdx.y, keys * D, 0)", "v += at(blockIdx.y, tokens * D, 0)"),
    (F, "rows past the queries read", 0, "at(first, D, 0), D, 0, there)", "at(first, D, 0), D, 0, ROWS)"),
    (F, "no tail mask", 0, "if (keys - key < TILE)", "if (false)"),
    (F, "one key too many", 0, "if (n * 8 + i % 2 >= left)", "if (n * 8 + i % 2 > left)"),
    (F, "sums not rescaled", 0, "acc[m][n][2 * h] *= shrink, acc[m][n][2 * h + 1] *= shrink;", ""),
    (F, "total not rescaled", 0, "sum[m][h] * shrink;", "sum[m][h];"),
    (F, "largest score of two lanes", 0, "high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));", ""),
    (F, "total of two lanes", 0, "sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 1);", ""),
    (F, "scores not shifted", 0, "shift = -high * factor;", "shift = -top[m][h] * factor;"),
    (F, "lse in base 2", 0, "logf(sum[m][h])", "log2f(sum[m][h])"),
    (F, "lse without the scale", 0, "fmaf(top[m][h], scale,", "fmaf(top[m][h], 1.0f,"),
    (F, "lse past the queries", 0, "&& r < there)", ")"),
    (F, "rows past the queries written", 0, "0, there - row, acc", "0, 32, acc"),
    (F, "another sample", 0, "const int sample = blockIdx.y / heads,", "const int sample = 0,"),
    (F, "queries from the start", 0, "q + at(first, D, 0)", "q + at(first - first_query, D, 0)"),
    (T, "swizzle of a fetch", 0, "(c ^ (r & 7)) * 16;", "(c ^ (r & 3)) * 16;"),
    (T, "swizzle of a result", 1, "(c ^ (r & 7)) * 16", "(c ^ (r & 3)) * 16"),
    (T, "lanes of the left factor", 0, "lane / 16 ^ row", "lane / 8 % 2 ^ row"),
    (T, "lanes of the right factor", 0, "lane / 8 % 2 ^ row", "lane / 16 ^ row"),
    (T, "operands swapped", 0, "left[m], right[0], right[1])", "left[m], right[1], right[0])"),
    (T, "operands of sums swapped", 1, "left[m], right[2], right[3])", "left[m], right[3], right[2])"),
    (T, "halves of weights swapped", 0, "left[m][1] = pack_bf16(lo[2], lo[3]);", "left[m][1] = pack_bf16(lo[3], lo[2]);"),
    (T, "rows of weights swapped", 0, "left[m][2] = pack_bf16(hi[0], hi[1])", "left[m][2] = pack_bf16(hi[2], hi[3])"),
    (T, "a step along the row missing", 0, "d < D / 16", "d < D / 16 - 1"),
    (T, "rows before the first read", 0, "r >= low - i && ", ""),
    (T, "rows before the first written", 0, "r < low || r >= high", "r < low || r > high"),
    (T, "no order before the result", 0, "__syncwarp();", ""),
    (T, "a factor of another row", 0, "acc[m][n][2 * h + 1] * factor[m][h]", "acc[m][n][2 * h + 1] * factor[m][0]"),
    (B, "no barrier: queries", 0, BARRIER, ""),
    (B, "no barrier at the end: queries", 1, BARRIER, ""),
    (B, "no barrier: keys", 2, BARRIER, ""),
    (B, "no barrier at the end: keys", 3, BARRIER, ""),
    (B, "tile not waited for: queries", 0, WAIT, "copy_async_wait<1>();"),
    (B, "own rows not waited for: queries", 1, WAIT, ""),
    (B, "tile not waited for: keys", 2, WAIT, "copy_async_wait<1>();"),
    (B, "own rows not waited for: keys", 3, WAIT, ""),
    (B, "next tile into this stage: queries", 0, "char* next = stages + (stage ^ 1)", "char* next = stages + stage"),
    (B, "next tile into this stage: keys", 1, "char* next = stages + (stage ^ 1)", "char* next = stages + stage"),
    (B, "next sums into this stage", 0, "sums[(stage ^ 1)", "sums[stage"),
    (B, "sums of the first tile", 0, "next_sum = share(after);", "next_sum = share(0);"),
    (B, "weights past the keys", 0, "if (keys - key < TILE)", "if (false)"),
    (B, "one weight past the keys", 0, "if (n * 8 + i % 2 >= left)", "if (n * 8 + i % 2 > left)"),
    (B, "a mask for as many keys as queries", 0, "left = keys - key", "left = tokens - key"),
    (B, "as many keys of the first tile as queries", 0, "fetch<D, TILE>(stages, k, D, 0, keys);", "fetch<D, TILE>(stages, k, D, 0, tokens);"),
    (B, "rows past the end of the keys", 0, "D, 0, keys - key - TILE);", "D, 0, TILE);"),
    (B, "keys of another head: queries", 0, "k += at(blockIdx.y, keys * D, 0)", "k += at(blockIdx.y, tokens * D, 0)"),
    (B, "keys of another head: keys", 1, "k += at(blockIdx.y, keys * D, 0)", "k += at(blockIdx.y, tokens * D, 0)"),
    (B, "queries of another head: keys", 0, "q += at(blockIdx.y, tokens * D, 0)", "q += at(blockIdx.y, keys * D, 0)"),
    (B, "dk of another head", 0, "to = at(blockIdx.y, keys * D, 0)", "to = at(blockIdx.y, tokens * D, 0)"),
    (B, "the first queries for every part", 0, "first_query + before,", "first_query,"),
    (B, "queries of the next part", 0, "min(each, queries - before)", "queries - before"),
    (B, "queries past the last part", 0, "min(each, queries - before)", "each"),
    (B, "the first keys for every block of a part", 0, "blockIdx.x % blocks * ROWS", "0"),
    (B, "parts over one another", 0, "at(2 * part * gridDim.y + blockIdx.y", "at(part * gridDim.y + blockIdx.y"),
    (B, "sums past the keys", 0, "if (r >= left) continue;", ""),
    (B, "the last part missing", 0, "part < parts; ++part", "part < parts - 1; ++part"),
    (B, "dk for dv", 0, "2 * part + (is_key ? 0 : 1)", "2 * part"),
    (B, "values past the last", 0, "if (i >= count) return;", ""),
    (B, "the scale of dk for dv", 0, "is_key ? scale : 1.0f", "scale"),
    (B, "delta not taken: queries", 0, "(dp[m][n][i] - taken[m][i / 2])", "dp[m][n][i]"),
    (B, "delta not taken: keys", 0, "dp[m][n][i] - (i % 2 == 0 ? t.x : t.y)", "dp[m][n][i]"),
    (B, "lse of the neighbour", 0, "i % 2 == 0 ? s.x : s.y", "i % 2 == 0 ? s.y : s.x"),
    (B, "lse read past the queries", 0, "query + mine < queries ? -LOG2_E", "true ? -LOG2_E"),
    (B, "delta read past the queries", 0, "is_delta && query + mine < queries", "is_delta"),
    (B, "rows without a cotangent have one", 0, "r >= low && r < high", "r < high"),
    (B, "dq without the scale", 0, "factor[m][h] = scale;", "factor[m][h] = 1.0f;"),
    (B, "dk without the scale", 0, "scaled[m][1] = scale;", "scaled[m][1] = 1.0f;"),
    (B, "keys and values swapped", 0, "add_weighted_rows<D, TALL, TILE>(acc, p, ks, lane)", "add_weighted_rows<D, TALL, TILE>(acc, p, vs, lane)"),
    (B, "dk of the cotangents", 0, "(d_key, p, qs, lane)", "(d_key, p, ds, lane)"),
    (B, "dv of changed weights", 0, "(d_value, p, ds, lane)", "(d_value, dp, ds, lane)"),
    (B, "rows past the tokens: dq", 0, "0, tokens - first - row, acc", "0, 32, acc"),
    (B, "rows past the keys: dk", 0, "0, keys - first - row, d_key", "0, 16 * TALL, d_key"),
    (B, "rows past the keys", 0, "k + at(first, D, 0), D, 0, keys - first", "k + at(first, D, 0), D, 0, ROWS"),
    (B, "queries past the end", 0, "D, 0, queries - after);", "D, 0, TILE);"),
    (B, "cotangents of another sample", 0, "at(sample * tokens + first_query,", "at(first_query,"),
    (B, "delta of half a head", 0, "offset > 0; offset /= 2", "offset > 1; offset /= 2"),
    (B, "delta past the queries", 0, "if (there && lane == 0)", "if (lane == 0)"),
    (B, "a block with queries ends", 0, "low < ROWS && high > 0 ? keys : 0", "low <= 0 && high > 0 ? keys : 0"),
    (WF, "no barrier before the first scores", 0, BARRIER, ""),
    (WF, "no barrier after the first scores", 2, BARRIER, ""),
    (WF, "no barrier after the first softmax", 3, BARRIER, ""),
    (WF, "no barrier after the softmax", 5, BARRIER, ""),
    (WF, "the first keys not waited for", 0, "copy_async_wait<1>();", ""),
    (WF, "the second tile not waited for: late", 0, WAIT, ""),
    (WF, "the second tile not waited for: early", 1, WAIT, ""),
    (WF, "a tile not waited for", 2, WAIT, ""),
    (WF, "the first keys not published", 0, PUBLISH, ""),
    (WF, "the second tile not published: late", 1, PUBLISH, ""),
    (WF, "the second tile not published: early", 2, PUBLISH, ""),
    (WF, "a tile not published", 3, PUBLISH, ""),
    (WF, "products begin without a fence", 1, "wgmma_begin();", ""),
    (WF, "scores not waited for", 0, "wgmma_wait<1>();", ""),
    (WF, "weighted values not waited for", 1, "wgmma_wait<0>();", ""),
    (WF, "the last values not waited for", 2, "wgmma_wait<0>();", ""),
    (WF, "keys fetched over those in use", 0, "(ks + (late ? before : next), k", "(ks + now, k"),
    (WF, "keys fetched one step early", 0, "(ks + (late ? before : next), k", "(ks + before, k"),
    (WF, "values fetched over those in use", 0, "(vs + (late ? next : now), v", "(vs + before, v"),
    (WF, "half of the second tile missing", 0, "if (late) {", "if (false) {"),
    (WF, "scores of the keys before", 0, "scores, own, ks + now,", "scores, own, ks + before,"),
    (WF, "values of the wrong stage", 0, "acc, weights, vs + before", "acc, weights, vs + now"),
    (WF, "two stages turned", 0, "before = now, now = next, next = last;", "before = now, now = last;"),
    (WF, "queries of the first warp", 0, "char* mine = qs + row * ROW_BYTES;", "char* mine = qs;"),
    (WF, "no tail mask", 0, "if (tokens - key < TILE)", "if (false)"),
    (WF, "no tail mask of the first tile", 0, "if (tokens < TILE)", "if (false)"),
    (WF, "one key too many", 0, "i % 2 >= left)", "i % 2 > left)"),
    (WF, "rows past the end read", 0, "D, 0, tokens - key);", "D, 0, TILE);"),
    (WF, "keys past the end read", 0, "D, tokens - key_fetched)", "D, TILE)"),
    (WF, "rows past the queries read", 0, "D, 0, there);", "D, 0, ROWS);"),
    (WF, "rows past the queries written", 0, "0, there - row, acc", "0, 16, acc"),
    (WF, "sums not rescaled", 0, "acc[n][i] *= shrink[i / 2];", ""),
    (WF, "total not rescaled", 0, "rows.sum[h] * shrink[h], odd", "rows.sum[h], odd"),
    (WF, "largest score of two lanes", 0, "high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));", ""),
    (WF, "lse past the queries", 0, "&& r < there)", ")"),
    (WF, "queries from the start", 0, "q + head + at(first, D, 0)", "q + head + at(first - first_query, D, 0)"),
    (W, "swizzle of a fetch", 0, "(c % 8 ^ (r & 7)) * 16;", "(c % 8 ^ (r & 3)) * 16;"),
    (W, "swizzle of a result", 1, "(c % 8 ^ (r & 7)) * 16;", "(c % 8 ^ (r & 3)) * 16;"),
    (W, "a descriptor without the swizzle", 0, "static_cast<descriptor>(1) << 62", "static_cast<descriptor>(0) << 62"),
    (W, "a descriptor's stride", 0, "(EIGHT_ROWS >> 4) << 32", "(EIGHT_ROWS >> 5) << 32"),
    (W, "a descriptor's next panel", 0, "describe(b, N * ROW_BYTES)", "describe(b, 16)"),
    (W, "tiles begin anywhere", 0, "from + (0u - shared_address(from)) % EIGHT_ROWS", "from"),
    (W, "a step along the rows of the left factor", 0, "(R * ROW_BYTES) + d % 4 * 32", "(R * ROW_BYTES) + d % 4 * 16"),
    (W, "the second panel of the right factor", 0, "further(right, d / 4 * (N * ROW_BYTES) +", "further(right,"),
    (W, "a step over the rows of the values", 0, "t * 2 * EIGHT_ROWS", "t * EIGHT_ROWS"),
    (W, "values along, not across", 0, "wgmma<true>(acc", "wgmma<false>(acc"),
    (W, "scores added to those before", 0, "+ d % 4 * 32), d > 0);", "+ d % 4 * 32), true);"),
    (W, "swizzle of a left factor", 0, "(d % 4 * 2 + c ^ (r & 7)) * 16)", "(d % 4 * 2 + c ^ (r & 3)) * 16)"),
    (W, "halves of weights swapped", 0, "weights[t][1] = pack_bf16(lo[2], lo[3]);", "weights[t][1] = pack_bf16(lo[3], lo[2]);"),
    (W, "rows of weights swapped", 0, "weights[t][2] = pack_bf16(hi[0], hi[1])", "weights[t][2] = pack_bf16(hi[2], hi[3])"),
    (W, "rows before the first read", 0, "r >= low - i && ", ""),
    (W, "no order before the result", 0, "__syncwarp();", ""),
    (W, "rows past the last written", 0, "r < low || r >= high", "r < low || r > high"),
    (WB, "no barrier before the first tile: queries", 0, BARRIER, ""),
    (WB, "no barrier after the factors: queries", 3, BARRIER, ""),
    (WB, "no barrier before the first tile: keys", 5, BARRIER, ""),
    (WB, "no barrier after the factors: keys", 8, BARRIER, ""),
    (WB, "the first tile not waited for: queries", 0, WAIT, ""),
    (WB, "a tile not waited for: queries", 1, WAIT, ""),
    (WB, "the first tile not waited for: keys", 2, WAIT, ""),
    (WB, "a tile not waited for: keys", 3, WAIT, ""),
    (WB, "the first tile not published: queries", 0, PUBLISH, ""),
    (WB, "a tile not published: queries", 1, PUBLISH, ""),
    (WB, "the first tile not published: keys", 2, PUBLISH, ""),
    (WB, "a tile not published: keys", 3, PUBLISH, ""),
    (WB, "scores not waited for: queries", 0, "wgmma_wait<1>();", ""),
    (WB, "cotangents not waited for: queries", 0, "wgmma_wait<0>();", ""),
    (WB, "sums not waited for: queries", 1, "wgmma_wait<0>();", ""),
    (WB, "scores not waited for: keys", 1, "wgmma_wait<1>();", ""),
    (WB, "cotangents not waited for: keys", 2, "wgmma_wait<1>();", ""),
    (WB, "sums not waited for: keys", 2, "wgmma_wait<0>();", ""),
    (WB, "half of the second tile missing: queries", 0, "if (late) fetch_tile(all_ks + BYTES", "if (false) fetch_tile(all_ks + BYTES"),
    (WB, "half of the second tile missing: keys", 0, "if (late) fetch_tile(1, TILE);", ""),
    (WB, "three stages of keys", 0, "(k_stage + 1 + late) % 4", "(k_stage + 1 + late) % 3"),
    (WB, "two stages of values", 0, "v_stage == 2 ? 0", "v_stage == 1 ? 0"),
    (WB, "three stages of queries", 0, "(stage + 1 + late) % 4", "(stage + 1 + late) % 3"),
    (WB, "next sums into this stage", 0, "sums[stage * (2 * TILE) + threadIdx.x] = next_sum;", "sums[(stage + 3) % 4 * (2 * TILE) + threadIdx.x] = next_sum;"),
    (WB, "weights past the keys", 0, "if (tokens - key < TILE)", "if (false)"),
    (WB, "delta not taken: queries", 0, "p[n][i] *= dp[n][i] - taken[i / 2];", "p[n][i] *= dp[n][i];"),
    (WB, "delta not taken: keys", 0, "dp[n][i] - (i % 2 == 0 ? t.x : t.y)", "dp[n][i]"),
    (WB, "lse of the neighbour", 0, "i % 2 == 0 ? s.x : s.y", "i % 2 == 0 ? s.y : s.x"),
    (WB, "rows without a cotangent have one", 0, "r >= low && r < high", "r < high"),
    (WB, "keys and values swapped", 0, "(acc, weights, ks, true)", "(acc, weights, vs, true)"),
    (WB, "dk of the cotangents", 0, "(d_key, slopes, qs, true)", "(d_key, slopes, ds, true)"),
    (WB, "dv of changed weights", 0, "(d_value, weights, ds, true)", "(d_value, slopes, ds, true)"),
    (WB, "rows past the tokens: dq", 0, "0, tokens - first - row, acc", "0, 16, acc"),
    (WB, "rows past the tokens: dk", 0, "0, tokens - first - row, d_key", "0, 16, d_key"),
    (WB, "queries past the end", 0, "at(next, D, 0), D, left));\n    wgmma_commit();\n    multiply_rows<D, ROWS, TILE>(dp, vs", "at(next, D, 0), D, TILE));\n    wgmma_commit();\n    multiply_rows<D, ROWS, TILE>(dp, vs"),
    (WB, "keys past the end", 0, "k + at(next, D, 0), D, left)", "k + at(next, D, 0), D, TILE)"),
    (WB, "cotangents of another sample", 0, "at(sample * tokens + first_query,", "at(first_query,"),
    (WB, "queries of the blocks of keys", 0, "block - half, heads", "block, heads"),
    (WB, "a block with queries ends", 0, "low < ROWS && high > 0 ? tokens : 0", "low <= 0 && high > 0 ? tokens : 0"),
    (P, "no barrier before a tile", 0, BARRIER, ""),
    (P, "no barrier after a tile", 1, BARRIER, ""),
    (P, "weights read too early", 0, "__syncwarp();", ""),
    (P, "a score too many", 0, "seen = key < keys &&", "seen = key <= keys &&"),
    (P, "a query sees what comes after it", 0, "causal && key > query", "causal && key > query + 1"),
    (P, "the bias of another query", 0, "heads * tokens + (there ? query : 0), keys, 0)", "heads * tokens, keys, 0)"),
    (P, "sums not rescaled", 0, "acc[n] *= shrink;", ""),
    (P, "columns past the width", 0, "if (column >= s.dim) break;", ""),
    (P, "delta of the neighbour", 0, "delta[at(blockIdx.y, tokens, query)] : 0.0f;", "delta[at(blockIdx.y, tokens, query - 1)] : 0.0f;"),
    (P, "keys past the tokens written", 1, "if (!there) return;", ""),
    ("heads.cu", "rows past the end", 0, "min(from + ROWS, rows)", "from + ROWS"),
    ("heads.cu", "rows past the end, backward", 1, "min(from + ROWS, rows)", "from + ROWS"),
    ("heads.cu", "a head too many", 0, "left < EACH ? left : EACH", "EACH"),
    ("heads.cu", "a row twice", 0, "at(row + 1, stride, 0), dim, next", "at(row, stride, 0), dim, next"),
    ("heads.cu", "a row twice, backward", 1, "at(row + 1, stride, 0), dim, next", "at(row, stride, 0), dim, next"),
    ("heads.cu", "the cotangent of a row twice", 0, "by_heads(row + 1, g, layout)", "by_heads(row, g, layout)"),
    ("heads.cu", "the first heads of a row only", 0, "head = number * EACH", "head = 0"),
    ("heads.cu", "heads beyond the threads of a block", 0, "done += blockDim.x / lanes * HEADS)", "done += heads)"),
    ("heads.cu", "heads beyond the threads of a block, backward", 0, "done += blockDim.x / lanes * HEADS_BACKWARD", "done += heads"),
    ("heads.cu", "a token of another place", 0, "layout.offset + token.place)", "token.place)"),
    ("heads.cu", "the angles of another token", 0, "layout.offset + token_of(row, layout.streams).place", "token_of(row, layout.streams).place"),
    ("heads.cu", "rotated the wrong way", 0, "x0 * c - x1 * s", "x0 * c + x1 * s"),
    ("heads.cu", "the norm's weight missing", 0, "v[k] * r * turn.w[k],", "v[k] * r,"),
    ("heads.cu", "the part along x stays", 0, "(d[n][k] - v[k] * part)", "(d[n][k])"),
    ("heads.cu", "the norm of a neighbour's head", 0, "offset < lanes; offset", "offset < 32; offset"),
    ("heads.cu", "the norm without the rest of a wide head", 0, "i = g.step; i < dim - g.first && n < g.count", "i = dim; i < dim - g.first && n < g.count"),
    ("heads.cu", "along x without the rest of a wide head", 0, "along[n] = sum_of_products(more_d, more_v, along[n]);", ""),
    ("heads.cu", "the rest of a wide head turned by the first angles", 0, "if (i > 0) turn = turn_at(", "if (false) turn = turn_at("),
    ("heads.cu", "the weight of another operand", 0, "operand(weight_0, weight_1, weight_2)", "operand(weight_0, weight_0, weight_2)"),
    ("heads.cu", "the stride of another operand", 0, "operand(stride_0, stride_1, stride_2)", "operand(stride_0, stride_0, stride_2)"),
    ("heads.cu", "the stride of another result", 0, "operand(dx_stride_0, dx_stride_1, dx_stride_2)", "operand(dx_stride_0, dx_stride_1, dx_stride_1)"),
    ("heads.cu", "the place of another operand", 0, "operand(out_0, out_1, out_2)", "operand(out_0, out_1, out_1)"),
    ("values.cuh", "the third stream at the second one's place", 0, "before += tokens, tokens = s.third;", "tokens = s.third;"),
    ("values.cuh", "samples of the second stream", 0, "row -= s.batch * tokens;", ""),
    ("values.cuh", "the tokens of the first stream for all", 0, "before = tokens, tokens = s.second;", "before = tokens;"),
    ("norm.cu", "the deviation of columns past the width", 0, "i + k < width ? (c < 0 ? v[k] : kept[c][k]) - m : 0.0f", "(c < 0 ? v[k] : kept[c][k]) - m"),
    ("norm.cu", "modulation of the wrong sample", 0, "at(token_of(row, streams).sample,", "at(0,"),
    ("norm.cu", "what is there is ignored", 0, "accumulate ? before[k] : 0.0f", "0.0f"),
    ("norm.cu", "the mean cotangent stays", 0, "g[k] - mean_d - v[k] * along", "g[k] - v[k] * along"),
    ("norm.cu", "one more than the scale missing", 0, "1.0f + s[k], h[k]", "s[k], h[k]"),
    ("norm.cu", "the rest of a long row left out", 0, "i < width; i += STEP) f(i, -1);", "i < width; i += STEP) {}"),
    ("norm.cu", "a chunk kept twice", 0, "threadIdx.x * WIDE + c * STEP;\n    chunks", "threadIdx.x * WIDE;\n    chunks"),
    ("norm.cu", "rows past the end", 0, "min(from + ROWS, rows_of(streams))", "from + ROWS"),
    ("norm.cu", "rows past the end, backward", 0, "min(from + ROWS_BACKWARD, rows_of(streams))", "from + ROWS_BACKWARD"),
    ("norm.cu", "a row twice", 0, "fetch_row(xr + width, next", "fetch_row(xr, next"),
    ("norm.cu", "a row twice, backward", 0, "fetch_row(x + start + width, x_next", "fetch_row(x + start, x_next"),
    ("norm.cu", "the cotangent of a row twice", 0, "fetch_row(dy + start + width, dy_next", "fetch_row(dy + start, dy_next"),
    ("pointwise.cu", "a token of another place", 0, "tokens + offset + token.place;", "tokens + token.place;"),
    ("pointwise.cu", "streams copied the other way", 0, "at(into_joint ? joint : p.row, to_stride", "at(into_joint ? p.row : joint, to_stride"),
    ("pointwise.cu", "parts of a sum without the last", 0, "for (int part = 1; part < parts; ++part)", "for (int part = 1; part < parts - 1; ++part)"),
    ("pointwise.cu", "parts of a sum all the first one", 0, "sums + at(part, count, 0) + at", "sums + at"),
    ("pointwise.cu", "parts of a sum into rows without gaps", 0, "to + at(p.row, to_stride, p.column), total", "to + at(p.row, width, p.column), total"),
    ("pointwise.cu", "factors that end with the blocks", 0, "i < part.count; i += step", "i < part.count; i += part.count"),
    ("pointwise.cu", "factors without their scale", 0, "v[k] *= part.scale;", ""),
    ("pointwise.cu", "factors at the first one's place", 0, "factors + part.to", "factors"),
    ("pointwise.cu", "factors of the first values", 0, "values + part.from", "values"),
    ("pointwise.cu", "factors past the end of their part", 0, "left = part.count - i;", "left = WIDE;"),
    ("pointwise.cu", "factors that begin between sixteen bytes", 0, "wide && part.from % Wide<float>::count == 0 && part.to % WIDE == 0", "wide"),
    ("sums.cuh", "values joined too early", 0, BARRIER, ""),
    ("sums.cuh", "half of the threads", 0, "half = THREADS / 2", "half = THREADS / 4"),
    ("sums.cuh", "the first of the results for all", 0, "values[n] = part[n * THREADS];", "values[n] = part[0];"),
    ("sums.cuh", "every thread has the results", 0, "if (threadIdx.x != 0) return false;", ""),
    ("sums.cuh", "slices added too early", 1, BARRIER, ""),
    ("sums.cuh", "a slice missing", 0, "for (int s = 1; s < SLICES; ++s)", "for (int s = 1; s < SLICES - 1; ++s)"),
    ("sums.cuh", "rows from the first on", 0, "row = first + slice", "row = slice"),
    ("sums.cuh", "a row too many", 0, "row < first + count", "row <= first + count"),
    ("sums.cuh", "columns past the width", 0, "if (column < width)", "if (true)"),
    ("sums.cuh", "columns past the width written", 0, "slice != 0 || column >= width", "slice != 0"),
    ("values.cuh", "values past the end read", 0, "v[i] = i < left ? p[i] : 0.0f", "v[i] = p[i]"),
    ("values.cuh", "bf16 values past the end read", 0, "if (i < left) words[i / 2] |=", "words[i / 2] |="),
    ("values.cuh", "f32 values past the end fetched", 0, "words[i] = i < left ? __float_as_uint(p[i]) : 0u", "words[i] = __float_as_uint(p[i])"),
    ("values.cuh", "values fetched into one half", 0, "<< i % 2 * 16", "<< 16"),
    ("values.cuh", "halves taken for one another", 0, "v[2 * i] = __uint_as_float(words[i] << 16)", "v[2 * i] = __uint_as_float(words[i] & 0xffff0000u)"),
    ("values.cuh", "values past the end written", 0, "if (i < left) p[i] = v[i];", "p[i] = v[i];"),
    ("values.cuh", "bf16 values past the end written", 0, "if (i < left) p[i] = to_bf16(v[i]);", "p[i] = to_bf16(v[i]);"),
    ("values.cuh", "halves of a word swapped", 0, "pack_bf16(v[0], v[1])", "pack_bf16(v[1], v[0])"),
    ("values.cuh", "four values twice", 0, "float4*>(p + i)", "float4*>(p)"),
    ("values.cuh", "four values written over others", 1, "float4*>(p + i)", "float4*>(p)"),
    ("values.cuh", "short chunks read whole", 0, "wide && left >= Count", "wide != 0"),
    ("values.cuh", "rows past the end", 0, "left, row < rows,", "left, true,"),
    ("device.cuh", "sums read too early", 0, "  __syncthreads();\n", ""),
    ("device.cuh", "scratch free too early", 1, "  __syncthreads();\n", ""),
    ("device.cuh", "a step of a sum missing", 0, "offset > 0", "offset > 1"),
    ("device.cuh", "rounded down", 0, "pack_bf16(v, 0.0f) & 0xffffu", "__float_as_uint(v) >> 16"),
    ("pointwise.cu", "tokens of the wrong sample", 0, "sample * from_tokens + token", "token"),
    ("pointwise.cu", "the factor missing", 0, "fmaf(a, u[i], v[i])", "u[i] + v[i]"),
    ("pointwise.cu", "not multiplied", 0, "v[i] *= a;", ""),
    ("pointwise.cu", "converted from the first column on", 0, "from + at(p.row, from_stride, p.column)", "from + at(p.row, from_stride, 0)"),
    ("pointwise.cu", "a term of the slope missing", 0, "* x * x), s)", "* x * x), 0.0f)"),
    ("pointwise.cu", "the gate of the wrong sample", 0, "at(token_of(p.row, streams).sample, gate_stride, p.column)", "at(0, gate_stride, p.column)"),
    ("pointwise.cu", "the gate of the wrong sample, backward", 1, "at(token_of(p.row, streams).sample, gate_stride, p.column)", "at(0, gate_stride, p.column)"),
    ("pointwise.cu", "another function", 0, "times_logistic(x, 1.702f * x)", "times_logistic(x, x)"),
    ("windows.cu", "zeros not before the picture", 0, "w.stride * at + tap - w.before", "w.stride * at + tap"),
    ("windows.cu", "columns from rows", 0, "source(column, tap % w.side", "source(column, tap / w.side"),
    ("windows.cu", "pixels from the first row on", 0, "(first + p.row) / columns", "p.row / columns"),
    ("windows.cu", "one channel for all", 0, "value % p.channels", "0"),
    ("windows.cu", "pixels outside the picture", 0, "if (from_row < 0 || from_column < 0) return nullptr;", ""),
    ("sums.cuh", "the mean left in", 0, "? v[k] - mean :", "? v[k] :"),
    ("sums.cuh", "the deviation of columns past the width", 0, "i + k < width ? v[k] - mean : 0.0f", "v[k] - mean"),
    ("norm_rows.cu", "the bias ignored", 0, "if (bias) load_wide", "if (false) load_wide"),
    ("norm_rows.cu", "rows past the last slice", 0, "min(each, rows - first)", "each"),
    ("norm_rows.cu", "the last slice left out", 0, "i < slices * channels", "i < (slices - 1) * channels"),
    ("norm_rows.cu", "channels of the first group", 0, "first = blockIdx.x * channels", "first = 0"),
    ("norm_rows.cu", "a channel of the next group", 0, "p.column + k == end &&", "p.column + k == end + 1 &&"),
    ("norm_rows.cu", "moments past the last group", 0, " && k < p.left", ""),
    ("norm_rows.cu", "a group ends once", 0, "++group, end += channels;", "++group;"),
    ("norm_rows.cu", "no SiLU", 0, "if (silu)", "if (false)"),
    ("scores.cu", "the mask ignored", 0, "sums[0] += weight * to_float", "sums[0] += to_float"),
    ("scores.cu", "a mask of nothing", 0, "sums[1] == 0.0 ? 0.0f : ", ""),
    ("scores.cu", "a mean of nothing", 0, "scale == 0.0 ? 0.0f : ", ""),
    ("scores.cu", "not divided by the mean's length", 0, "sums[2] += m * m", "sums[2] += x * x"),
    ("optimizer.cu", "a value too many", 0, "i < end; i += THREADS) sum[0]", "i <= end; i += THREADS) sum[0]"),
    ("optimizer.cu", "parts past the first threads", 0, "i < parts; i += THREADS) sum[0]", "i < parts; i += parts) sum[0]"),
    ("optimizer.cu", "places past the first threads", 0, "i < parts; i += THREADS) place[0]", "i < parts; i += parts) place[0]"),
    ("optimizer.cu", "the last value that is not finite", 0, " && place[0] == count; i", "; i"),
    ("optimizer.cu", "the largest is not finite", 0, "& 0x7f800000u) == 0x7f800000u", "& 0x7f000000u) == 0x7f000000u"),
    ("optimizer.cu", "no bias correction", 0, "__fdiv_rn(__fsqrt_rn(second), root2)", "__fsqrt_rn(second)"),
    ("optimizer.cu", "a gradient that is not clipped", 0, "__fmul_rn(gradient[i], factor)", "gradient[i]"),
    ("optimizer.cu", "no decay", 0, "__fmul_rn(parameters[i], keep)", "parameters[i]"),
    ("optimizer.cu", "eps below the root", 0, "__fadd_rn(__fdiv_rn(__fsqrt_rn(second), root2), eps)", "__fdiv_rn(__fsqrt_rn(__fadd_rn(second, eps)), root2)"),
    ("optimizer.cu", "a value past the end", 0, "if (i >= count) return;", "if (i > count) return;"),
    ("factors.cu", "rows past the end of a tile", 0, "r < rows && c * 8 < width", "c * 8 < width"),
    ("factors.cu", "values past the rank", 0, "r < rows && c * 8 < width", "r < rows"),
    ("factors.cu", "operands not waited for", 0, "copy_async_wait<0>();", "copy_async_wait<1>();"),
    ("factors.cu", "no barrier after the operands", 0, "__syncthreads();", ""),
    ("factors.cu", "half of the rank", 0, "k < RANK; k += 16", "k < RANK / 2; k += 16"),
    ("factors.cu", "rows of another stripe", 0, "% stripes;", "% (stripes + 1);"),
    ("factors.cu", "operands in use while results leave", 1, "__syncthreads();", ""),
    ("factors.cu", "results of another warp", 0, "char* results = hs + warp * 16 * (2 * EXPAND_COLUMNS);", "char* results = hs;"),
    ("factors.cu", "no barrier before results leave", 0, "__syncwarp();", ""),
    ("factors.cu", "results past the last row", 0, "warp * 16 + r < there && c", "c"),
    ("factors.cu", "results past the last column", 0, "there && c * 8 < wide)", "there)"),
    ("factors.cu", "a tile that is not there yet", 0, "copy_async_wait<TILES - 2>();", "copy_async_wait<TILES - 1>();"),
    ("factors.cu", "no barrier in front of a tile", 2, "__syncthreads();", ""),
    ("factors.cu", "a tile is replaced while it is read", 0, "request(tile + TILES - 1);", "request(tile + TILES);"),
    ("factors.cu", "rows of another warp", 0, "right_across<RANK_CHUNKS>(right[n / 16], narrows, n, warp * 16, lane)", "right_across<RANK_CHUNKS>(right[n / 16], narrows, n, 0, lane)"),
    ("factors.cu", "tiles in use while sums are handed over", 3, "__syncthreads();", ""),
    ("factors.cu", "sums taken before they are given", 4, "__syncthreads();", ""),
    ("factors.cu", "sums given before all have taken theirs", 5, "__syncthreads();", ""),
    ("factors.cu", "half of the warps", 0, "int half = SUM_WARPS / 2;", "int half = SUM_WARPS / 4;"),
    ("factors.cu", "a column past the end", 0, "if (m < columns && n < rank)", "if (n < rank)"),
    ("factors.cu", "a value past the rank", 0, "if (m < columns && n < rank)", "if (m < columns)"),
    ("factors.cu", "not turned", 0, "turned ? at(n, columns, m) : at(m, rank, n)", "at(m, rank, n)"),
    ("factors.cu", "no scale", 0, "scale * acc[t][i]", "acc[t][i]"),
]


def standin():
    """The environment of a command on the stand-in, which is built first."""
    found = subprocess.run([str(ROOT / "scripts" / "standin.sh"), "env", "-0"], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        sys.exit(found.returncode)
    return dict(line.split("=", 1) for line in found.stdout.split("\0") if line)


def environment(folder, **more):
    """Sources from a folder."""
    found = {"PREFGRAPH_KERNELS": str(folder), "PREFGRAPH_CACHE": str(folder / "cache"), "RUST_BACKTRACE": "0"}
    return {**os.environ, **found, "STANDIN_THREADS": "1", **more}


def test_program():
    build = ["cargo", "test", "--quiet", "--locked", "-p", "prefgraph-nn", "--test", "devices", "--no-run", "--message-format=json"]
    lines = subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [m["executable"] for m in map(json.loads, lines) if m.get("executable") and m["target"]["name"] == "devices"]
    return found[-1]


def run(program, folder, tests, **more):
    """Whether a test fails, what the stand-in finds, and all that was said. Stops at the first test that fails."""
    with tempfile.TemporaryFile("w+") as out:
        command = [program, *tests, "--test-threads=1"]
        process = subprocess.Popen(command, cwd=ROOT / "nn", env=environment(folder, **more), stdout=out, stderr=subprocess.STDOUT)

        def text():
            return os.pread(out.fileno(), 1 << 24, 0).decode(errors="replace")

        end = time.monotonic() + SECONDS
        while process.poll() is None and "FAILED" not in text() and time.monotonic() < end:
            time.sleep(0.2)
        ended = process.poll()
        if ended is None:
            process.kill()
            process.wait()
        said = text()
        if "does not compile" in said or "cannot be used" in said.split("FAILED")[0]:
            sys.exit(f"this is no mutant:\n{said}")
        found = re.search(r"standin: (.*?) in \w+ at ", said) or re.search(r"standin: (.*)", said)
        finding = found.group(1) if found else ""
        if ended is None and "FAILED" not in said:
            finding = f"no end in {SECONDS} s"
        return ended != 0, finding, said


def judge(program, mutant):
    file, name, occurrence, old, new = mutant
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for source in KERNELS.iterdir():
            shutil.copy(source, folder)
        text = (folder / file).read_text()
        parts = text.split(old)
        (folder / file).write_text(old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :]))
        gpu = {"STANDIN_CAPABILITY": CAPABILITIES[file]} if file in CAPABILITIES else {}
        values, _, _ = run(program, folder, TESTS[file], **gpu)
        checks, found, _ = run(program, folder, TESTS[file], **gpu, **CHECKED)
        return mutant, values, checks, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if arguments.only in m[0] or arguments.only in m[1]]
    for file, name, occurrence, old, _ in mutants:
        if (KERNELS / file).read_text().count(old) <= occurrence:
            sys.exit(f"{file}, {name}: the text to change is not there: {old!r}")
    if arguments.list:
        for file, name, *_ in mutants:
            print(f"{file:22} {name}")
        return
    # A copy: somebody may build while the mutants run.
    with tempfile.TemporaryDirectory() as own:
        program = shutil.copy(test_program(), own)
        # The stand-in keeps compiled kernels by their text: mutants share those that nobody has changed.
        os.environ.update({**standin(), "STANDIN_CACHE": f"{own}/kernels"})
        judge_all(mutants, program, arguments.jobs)


def judge_all(mutants, program, jobs):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for source in KERNELS.iterdir():
            shutil.copy(source, folder)
        for capability in sorted({CAPABILITIES.get(m[0], "") for m in mutants}):
            gpu = {"STANDIN_CAPABILITY": capability} if capability else {}
            tests = sorted({t for m in mutants if CAPABILITIES.get(m[0], "") == capability for t in TESTS[m[0]]})
            for more in gpu, {**gpu, **CHECKED}:
                failed, _, text = run(program, folder, tests, **more)
                if failed:
                    sys.exit(f"the tests fail without a change {more}:\n{text}")
    print(f"{'file':22} {'what is broken':42} {'values':10} checks", flush=True)
    missed, by_values, by_checks = [], 0, 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for mutant, values, checks, found in pool.map(lambda m: judge(program, m), mutants):
            told = found or ("values" if checks else "-")
            print(f"{mutant[0]:22} {mutant[1]:42} {'noticed' if values else '-':10} {told}", flush=True)
            by_values, by_checks = by_values + values, by_checks + bool(found)
            if not values and not checks:
                missed.append(mutant)
    print(f"{len(mutants)} mutants: {by_values} noticed by values, {by_checks} by findings, {len(missed)} by neither")
    for file, name, *_ in missed:
        print(f"not noticed: {file}, {name}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
