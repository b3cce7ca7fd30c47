//! A stand-in for the CUDA driver, NVRTC and cuBLASLt on the CPU: those functions that cudarc's safe layer calls.
//!
//! Device memory is host memory in one arena. Work is queued per stream and run inside API calls, in an order that is
//! adversarial but allowed by the recorded events. Kernels are the project's CUDA C, compiled by g++ (`host/emu.h`).
//!
//! ```text
//! STANDIN_ORDER    eager (default) | latest | random:SEED      when queued work runs
//! STANDIN_CHECK    1: every access of kernels is checked: bounds, first writes, races in blocks, between blocks and streams
//! STANDIN_SEED     order of a block's threads, and when asynchronous copies land
//! STANDIN_THREADS  OS threads that run blocks (default: all; 1 with checks)
//! STANDIN_SOURCES  folder of .cu files whose kernels modules of real PTX refer to
//! ```

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "the functions of a driver are called from outside and work on addresses")]

mod blaslt;
mod check;
mod driver;
mod kernels;
mod memory;
mod nvrtc;
mod state;
