//! cuBLASLt's functions, by their names: products of matrices by columns, in f32 and bf16, with sums in f32.

mod algorithms;
mod calls;
mod layouts;
mod matmul;
mod objects;
mod product;

/// `cublasStatus_t`
type Status = u32;
const SUCCESS: Status = 0;
const NOT_INITIALIZED: Status = 1;
const INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;
const NOT_SUPPORTED: Status = 15;

/// `cudaDataType_t`
#[derive(Clone, Copy, PartialEq, Debug)]
enum Type {
    F32,
    Bf16,
}

impl Type {
    fn from_number(number: i32) -> Option<Type> {
        match number {
            0 => Some(Type::F32),
            14 => Some(Type::Bf16),
            _ => None,
        }
    }
    fn bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::Bf16 => 2,
        }
    }
}

fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(SUCCESS)
}

/// Refuses a call, and says why: cuBLASLt itself gives a number only.
fn refuse<T>(status: Status, why: &str) -> Result<T, Status> {
    eprintln!("standin: cublasLt: {why}");
    Err(status)
}
