//! A stand-in for the CUDA driver, NVRTC and cuBLASLt on the CPU: one library with the names of all three.
//!
//! Device memory is host memory in one arena. Work is queued by stream and runs inside the calls of the host, in an order that
//! is as bad as the recorded events allow. Kernels are the project's CUDA C, compiled by g++ with `host/emu.h`. `README.md`
//! says how to run it and lists the settings.
//!
//! | module | what it is |
//! | --- | --- |
//! | `driver`, `nvrtc`, `blaslt` | the functions that are called from outside, by their names |
//! | `device` | what one device is: its memory, streams, events, modules and its error; when queued work runs, and what it does |
//! | `queue`, `events`, `work`, `clock` | streams and the work in them, what orders it, and its kinds |
//! | `memory`, `pinned`, `shared` | the arena of a device, page-locked memory of the host, and what other processes hold |
//! | `checker` | whether each access is inside an allocation, reads what was written, and is ordered |
//! | `kernels` | compiles kernels, loads them and runs their blocks |
//! | `image` | what "PTX" is here: the source and its options, as text |
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "a driver is called from outside and works on addresses")]

mod blaslt;
mod checker;
mod clock;
mod codes;
mod device;
mod driver;
mod events;
mod foreign;
mod image;
mod kernels;
mod memory;
mod nvrtc;
mod pinned;
mod queue;
mod settings;
mod shared;
mod work;
