//! Instruction sets: which are available, which one a device uses, and how to run a kernel with it.
#![allow(unsafe_code, reason = "the micro-kernel works on pointers")]

use pulp::{NullaryFnOnce, Scalar, Simd};

use super::{
    machine::{Kernel, Machine},
    micro::micro_tile,
    tile::{PairsTile, Tile},
};
use crate::error::{Error, Result};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// x86-64 with AVX-512 (F, BW, CD, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// No vector instructions; correct everywhere and slow.
    Portable,
}

impl Isa {
    /// Those of this machine, the widest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = [Self::Avx512, Self::Avx2, Self::Portable];
        #[cfg(target_arch = "aarch64")]
        let all = [Self::Neon, Self::Portable];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let all = [Self::Portable];
        all.into_iter().filter(|isa| Token::new(*isa).is_some()).collect()
    }
}

/// Proof that the machine has an instruction set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    Portable,
}

impl Token {
    fn new(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => pulp::x86::V4::try_new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => pulp::x86::V3::try_new().map(Self::Avx2),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => pulp::aarch64::Neon::try_new().map(Self::Neon),
            Isa::Portable => Some(Self::Portable),
        }
    }

    /// The widest instruction set of this machine.
    pub(super) fn best() -> Self {
        Isa::available().into_iter().find_map(Self::new).unwrap_or(Self::Portable)
    }

    pub(super) fn require(isa: Isa) -> Result<Self> {
        Self::new(isa).ok_or_else(|| {
            Error::Setting(format!("this machine has no {isa:?}; it has {:?}", Isa::available()))
        })
    }

    pub(super) fn isa(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Isa::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Isa::Neon,
            Self::Portable => Isa::Portable,
        }
    }

    /// Rows and columns of the micro-tile of the matrix product.
    pub(super) fn tile(self) -> (usize, usize) {
        fn of<M: Machine>(_: M) -> (usize, usize) {
            (M::TILE_ROWS, M::TILE_COLUMNS)
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => of(simd),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => of(simd),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => of(simd),
            Self::Portable => of(Scalar),
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(Run::<_, _, 1>(simd, kernel)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(Run::<_, _, 2>(simd, kernel)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(Run::<_, _, 4>(simd, kernel)),
            Self::Portable => Run::<_, _, 16>(Scalar, kernel).call(),
        }
    }
}

struct TileOp<'a, M, const R: usize, const V: usize, const ROW: usize, const PAIRS: bool>(M, &'a Tile);

impl<M: Machine, const R: usize, const V: usize, const ROW: usize, const PAIRS: bool> NullaryFnOnce
    for TileOp<'_, M, R, V, ROW, PAIRS>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // SAFETY: made in `Machine::tile` only, whose caller vouches for the pointers.
        unsafe { micro_tile::<M, R, V, ROW, PAIRS>(self.0, self.1) }
    }
}

/// Instruction sets without such an instruction.
#[inline(always)]
fn no_pairs(_row: usize, _rows: usize) -> Option<PairsTile> {
    None
}

macro_rules! machine {
    ($simd:ty, $rows:literal x $vectors:literal, $pairs:expr, $($r:literal)*) => {
        impl Machine for $simd {
            const TILE_ROWS: usize = $rows;
            const TILE_COLUMNS: usize = $vectors * <$simd as Simd>::F32_LANES;

            #[inline(always)]
            unsafe fn tile<const ROW: usize, const PAIRS: bool>(self, rows: usize, tile: &Tile) {
                let by_pairs: Option<PairsTile> = if PAIRS { $pairs(ROW, rows) } else { None };
                if let Some(by_pairs) = by_pairs {
                    // SAFETY: there only where the processor has the instruction; the rest is the caller's word.
                    return unsafe { by_pairs(tile) };
                }
                match rows {
                    $($r => Simd::vectorize(self, TileOp::<_, $r, $vectors, ROW, PAIRS>(self, tile)),)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
    };
}

// Accumulators are rows x vectors registers; some are left for the panel's vectors and the broadcast value.
#[cfg(target_arch = "x86_64")]
machine!(pulp::x86::V4, 12 x 2, super::pairs::tile, 12 11 10 9 8 7 6 5 4 3 2 1);
#[cfg(target_arch = "x86_64")]
machine!(pulp::x86::V3, 6 x 2, no_pairs, 6 5 4 3 2 1);
#[cfg(target_arch = "aarch64")]
machine!(pulp::aarch64::Neon, 6 x 4, no_pairs, 6 5 4 3 2 1);
machine!(Scalar, 4 x 16, no_pairs, 4 3 2 1);

struct Run<M, K, const N: usize>(M, K);

impl<M: Machine, K: Kernel, const N: usize> NullaryFnOnce for Run<M, K, N> {
    type Output = K::Output;

    #[inline(always)]
    fn call(self) -> K::Output {
        self.1.run::<M, N>(self.0)
    }
}
