//! GEMMs in the order of deterministic mode, in which a row does not depend on the number of rows.
//!
//! `matmul_batch_invariant.cu` defines the order: blocks of 16 k upwards, one f32 accumulator a value. It does the products of few
//! rows itself. For more rows an algorithm of cuBLASLt is taken, which is several times faster, once it was proven to give
//! the kernel's bits: on operands whose exact products are zero, so that what comes out is rounding alone, and
//! thousands of values tell one order from another. Where no algorithm passes, the kernel does all rows.

use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr::from_ref;

use super::cublaslt::{self as lt, Algorithm, Heuristic};
use super::gemm_plans::{GemmPlans, Key, Plan, Search, WORKSPACE};
use super::gpu::Gpu;
use super::matmul::{DType, MatMul};
use super::rows::blocks;
use super::{Arg, Buffer};
use crate::{Error, Result};

/// Rows up to which the kernel beats cuBLASLt; its tile.
pub(super) const SKINNY_ROWS: usize = 8;
/// Shape of the products that prove an algorithm.
const PROOF: [usize; 2] = [32, 128];

/// What an algorithm was tried on: itself, K, the type of D, whether there are C and a bias, and the factor.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Claim {
    algorithm: Algorithm,
    k: usize,
    d_type: DType,
    adds: [bool; 2],
    alpha: u32,
}

/// Algorithms that were tried, and whether they add in the kernel's order.
pub(super) type Proofs = HashMap<Claim, bool>;

impl Gpu {
    /// The product by the kernel that defines the order.
    pub(super) fn matmul_batch_invariant(&'static self, p: &MatMul) -> Result<()> {
        let whole = [p.lda, p.ldb, p.k].iter().all(|v| v.is_multiple_of(8)) && (p.a | p.b).is_multiple_of(16);
        if !whole || p.transpose_a || !p.transpose_b || p.ab != DType::Bf16 {
            let why = format!("deterministic mode multiplies bf16 rows of multiples of 8 values: {p:?}");
            return Err(Error::Kernel { name: "matmul_batch_invariant".to_owned(), why });
        }
        let few = p.m <= SKINNY_ROWS;
        // As in the kernel: tiles of 8 rows, stages of 64 k.
        let (tiles, stages) = if few { (1, 15) } else { (8, 4) };
        let name = match (few, p.d_type) {
            (true, DType::Bf16) => "matmul_batch_invariant_few",
            (true, DType::F32) => "matmul_batch_invariant_few_f32",
            (false, DType::Bf16) => "matmul_batch_invariant_many",
            (false, DType::F32) => "matmul_batch_invariant_many_f32",
        };
        if p.beta != 0.0 && p.beta != 1.0 {
            let why = format!("adds C or leaves it out, its factor is {}", p.beta);
            return Err(Error::Kernel { name: name.to_owned(), why });
        }
        let int = |v: usize| Arg::I32(i32::try_from(v).unwrap_or(i32::MAX));
        let args = [
            Arg::Ptr(p.a),
            Arg::U64(p.lda as u64),
            Arg::Ptr(p.b),
            Arg::U64(p.ldb as u64),
            Arg::Ptr(if p.beta == 0.0 { 0 } else { p.c }),
            Arg::U64(p.ldc as u64),
            Arg::Ptr(p.bias.unwrap_or(0)),
            Arg::Ptr(p.d),
            Arg::U64(p.ldd as u64),
            int(p.m),
            int(p.n),
            int(p.k),
            Arg::F32(p.alpha),
        ];
        let grid = [blocks(p.n, 16), blocks(p.m, 8 * tiles), 1];
        let shared = stages * (16 + 8 * tiles) * 64 * 2;
        self.launch(name, grid, [32, 1, 1], shared as u32, &args)
    }
}

impl GemmPlans {
    /// The first algorithm in the library's order, its split of K taken away, that adds in the kernel's order.
    pub(super) fn proven(&mut self, plan: &Plan, product: &MatMul, key: &Key) -> Result<Option<Heuristic>> {
        let search = [Search { count: 4, may_split: true }, Search { count: 16, may_split: false }];
        for search in search {
            for candidate in plan.ranked(self.handle, product, key, search)? {
                let Some(whole) = self.without_split(plan, candidate.algorithm) else { continue };
                if self.is_proven(whole.algorithm, product)? {
                    return Ok(Some(whole));
                }
            }
        }
        Ok(None)
    }

    /// The algorithm with K in one piece, if it runs so.
    fn without_split(&self, plan: &Plan, mut algorithm: Algorithm) -> Option<Heuristic> {
        for (attribute, value) in [(lt::ALGO_SPLIT_K, 1u32), (lt::ALGO_REDUCTION_SCHEME, 0)] {
            // SAFETY: writes the algorithm; reads the value, whose size is given. An algorithm that has not this
            // attribute has no split.
            unsafe {
                (self.functions.cublasLtMatmulAlgoConfigSetAttribute)(
                    &raw mut algorithm,
                    attribute,
                    from_ref(&value).cast(),
                    size_of::<u32>(),
                )
            };
        }
        self.check(plan, algorithm)
    }

    /// What the algorithm needs for the plan's shape; none if it cannot do it.
    fn check(&self, plan: &Plan, algorithm: Algorithm) -> Option<Heuristic> {
        let mut checked = Heuristic::default();
        let [b, a, c, d] = plan.layouts;
        // SAFETY: all descriptors are alive; writes one result.
        let status: c_int = unsafe {
            (self.functions.cublasLtMatmulAlgoCheck)(
                self.handle,
                plan.desc,
                b,
                a,
                c,
                d,
                &raw const algorithm,
                &raw mut checked,
            )
        };
        let runs = status == 0 && checked.state == 0 && checked.workspace <= WORKSPACE;
        checked.algorithm = algorithm;
        runs.then_some(checked)
    }

    fn is_proven(&mut self, algorithm: Algorithm, product: &MatMul) -> Result<bool> {
        let claim = Claim {
            algorithm,
            k: product.k,
            d_type: product.d_type,
            adds: [product.beta != 0.0, product.bias.is_some()],
            alpha: product.alpha.to_bits(),
        };
        if let Some(&known) = self.proofs.get(&claim) {
            return Ok(known);
        }
        let proven = self.prove(algorithm, product)?;
        self.proofs.insert(claim, proven);
        Ok(proven)
    }

    /// Whether the algorithm gives the kernel's bits.
    fn prove(&self, algorithm: Algorithm, product: &MatMul) -> Result<bool> {
        let (gpu, [m, n], k) = (self.workspaces[0].gpu(), PROOF, product.k);
        let mut random = Random(k as u64);
        let (x, w) = random.opposites(m, n, k);
        let (x, w) = (gpu.upload(&x)?, gpu.upload(&w)?);
        // As small as the rounding that they must not hide.
        let addend = |random: &mut Random, len: usize| -> Result<Buffer> {
            let values = std::iter::repeat_with(|| random.next() * 2f32.powi(-20)).take(len);
            match product.d_type {
                DType::Bf16 => gpu.upload(&values.map(upper_half).collect::<Vec<_>>()),
                DType::F32 => gpu.upload(&values.collect::<Vec<_>>()),
            }
        };
        let (c, bias) = (addend(&mut random, m * n)?, addend(&mut random, n)?);
        // NaN where nothing is written.
        let empty = vec![u8::MAX; m * n * product.d_type.bytes()];
        let results = [gpu.upload(&empty)?, gpu.upload(&empty)?];
        let into = |d: &Buffer| {
            let mut small = MatMul::nt(x.ptr(), w.ptr(), d.ptr(), m, n, k, DType::Bf16, product.d_type);
            small = small.scaled(product.alpha);
            small.bias = product.bias.map(|_| bias.ptr());
            if product.beta == 0.0 { small } else { small.plus(product.beta, c.ptr()) }
        };
        let small = into(&results[0]);
        let plan = Plan::new(self.functions, &small)?;
        let Some(heuristic) = self.check(&plan, algorithm) else { return Ok(false) };
        self.launch(&plan, &heuristic, &small, gpu.stream.cast())?;
        gpu.matmul_batch_invariant(&into(&results[1]))?;
        let [got, want] = results.each_ref().map(|r| gpu.download::<u8>(r, 0, empty.len()));
        Ok(got? == want?)
    }
}

/// Numbers for proofs (<https://prng.di.unimi.it/splitmix64.c>).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In `[-1, 1)`.
    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// bf16 operands x `[m, k]` and w `[n, k]` of a product whose exact value is zero: each k has a partner, in a random
    /// place, with the same w and the opposite x. (An odd K leaves one k out.)
    fn opposites(&mut self, m: usize, n: usize, k: usize) -> (Vec<u16>, Vec<u16>) {
        let mut places: Vec<usize> = (0..k).collect();
        for i in (1..k).rev() {
            places.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
        let mut paired = |rows: usize, sign: u16| {
            let mut values = vec![0u16; rows * k];
            for row in values.chunks_exact_mut(k) {
                for pair in places.chunks_exact(2) {
                    row[pair[0]] = upper_half(self.next());
                    row[pair[1]] = row[pair[0]] ^ sign;
                }
            }
            values
        };
        (paired(m, 0x8000), paired(n, 0))
    }
}

/// A value cut to bf16.
fn upper_half(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_opposites_are_zero_and_their_terms_are_not() {
        let [m, n, k] = [3, 5, 24];
        let (x, w) = Random(7).opposites(m, n, k);
        let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
        for row in x.chunks_exact(k) {
            for column in w.chunks_exact(k) {
                let terms: Vec<f64> = row.iter().zip(column).map(|(&x, &w)| value(x) * value(w)).collect();
                assert!(terms.iter().sum::<f64>().abs() < 1e-15, "{terms:?}");
                assert!(terms.iter().map(|t| t.abs()).sum::<f64>() > 0.5, "{terms:?}");
            }
        }
    }
}
