//! Matrix products by cuBLASLt.
//!
//! cuBLASLt thinks in columns. A row-major `[rows, cols]` matrix is a column-major `[cols, rows]` one, so it computes
//! Dᵀ = op(B)ᵀ op(A)ᵀ: its first operand is our B, its second our A, and a value per column of D is its bias.
//!
//! For each shape, its descriptors and the algorithm that the heuristic ranks first are kept ([`super::products`]), so a
//! product in the steady state costs one lookup and one launch. GEMMs may be captured.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use super::batch_invariant::SKINNY_ROWS;
use super::cublaslt as lt;
use super::gemm_plans::GemmPlans;
use super::gpu::{Gpu, lock};
use crate::{Error, Result};

/// Types of matrix elements. Sums are in f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// bfloat16
    Bf16,
    /// float
    F32,
}

impl DType {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    pub(super) fn code(self) -> c_int {
        match self {
            Self::Bf16 => lt::R_16BF,
            Self::F32 => lt::R_32F,
        }
    }
}

/// `D[m, n] = alpha op(A) op(B) + beta C (+ bias)`, all row-major; operands are addresses on the GPU.
#[derive(Debug, Clone, Copy)]
pub struct MatMul {
    /// `[m, k]`, or `[k, m]` when transposed.
    pub a: u64,
    /// `[k, n]`, or `[n, k]` when transposed.
    pub b: u64,
    /// `[m, n]`, read when `beta` is not zero; may be `d`.
    pub c: u64,
    /// `[m, n]`
    pub d: u64,
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Elements from row to row of A as it is stored.
    pub lda: usize,
    /// Elements from row to row of B as it is stored.
    pub ldb: usize,
    /// Elements from row to row of C.
    pub ldc: usize,
    /// Elements from row to row of D.
    pub ldd: usize,
    /// A is stored as `[k, m]`.
    pub transpose_a: bool,
    /// B is stored as `[n, k]`.
    pub transpose_b: bool,
    /// Type of A and B.
    pub ab: DType,
    /// Type of C, D and the bias.
    pub d_type: DType,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// `[n]`, added to every row.
    pub bias: Option<u64>,
    /// A row's values do not depend on the number of rows; of [`MatMul::nt`] with bf16 operands only.
    pub fixed: bool,
    /// On the second stream of an [`super::side_stream::SideStream`].
    pub(crate) aside: bool,
}

impl MatMul {
    /// `y[m, n] = x[m, k] W[n, k]ᵀ`, the forward pass of a linear map; dense operands.
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn nt(a: u64, b: u64, d: u64, m: usize, n: usize, k: usize, ab: DType, d_type: DType) -> Self {
        Self {
            a,
            b,
            c: 0,
            d,
            m,
            n,
            k,
            lda: k,
            ldb: k,
            ldc: n,
            ldd: n,
            transpose_a: false,
            transpose_b: true,
            ab,
            d_type,
            alpha: 1.0,
            beta: 0.0,
            bias: None,
            fixed: false,
            aside: false,
        }
    }

    /// `dx[m, n] = dy[m, k] W[k, n]`, its input gradient; dense operands.
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn nn(a: u64, b: u64, d: u64, m: usize, n: usize, k: usize, ab: DType, d_type: DType) -> Self {
        Self { ldb: n, transpose_b: false, ..Self::nt(a, b, d, m, n, k, ab, d_type) }
    }

    /// `dW[m, n] = dy[k, m]ᵀ x[k, n]`, its weight gradient; dense operands.
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn tn(a: u64, b: u64, d: u64, m: usize, n: usize, k: usize, ab: DType, d_type: DType) -> Self {
        Self { lda: m, transpose_a: true, ..Self::nn(a, b, d, m, n, k, ab, d_type) }
    }

    /// Adds `beta C`: a residual, or with `c` equal to `d` what is there.
    #[must_use]
    pub fn plus(self, beta: f32, c: u64) -> Self {
        Self { beta, c, ..self }
    }

    /// Adds a value to every column.
    #[must_use]
    pub fn bias(self, bias: u64) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Multiplies the product.
    #[must_use]
    pub fn scaled(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Whether a row's values must not depend on the number of rows.
    #[must_use]
    pub fn fixed(self, fixed: bool) -> Self {
        Self { fixed, ..self }
    }

    /// Whether it runs on the second stream.
    #[must_use]
    pub(crate) fn aside(self, aside: bool) -> Self {
        Self { aside, ..self }
    }

    /// Distances of rows, in elements, where operands are parts of wider matrices; C as D.
    #[must_use]
    pub fn strides(self, lda: usize, ldb: usize, ldd: usize) -> Self {
        Self { lda, ldb, ldc: ldd, ldd, ..self }
    }

    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        let (a_width, b_width) =
            (if self.transpose_a { self.m } else { self.k }, if self.transpose_b { self.k } else { self.n });
        let rows = [("lda", self.lda, a_width), ("ldb", self.ldb, b_width), ("ldd", self.ldd, self.n)];
        let ldc = (self.beta != 0.0).then_some(("ldc", self.ldc, self.n));
        let short = rows.into_iter().chain(ldc).find(|(_, distance, width)| distance < width);
        short.map(|(name, distance, width)| format!("{name} is {distance}, rows have {width} elements")).or_else(|| {
            (self.k == 0).then(|| "k is 0".to_owned()).or_else(|| {
                let operands = [("a", Some(self.a)), ("b", Some(self.b)), ("d", Some(self.d)), ("bias", self.bias)];
                let c = ("c", (self.beta != 0.0).then_some(self.c));
                let absent = operands.into_iter().chain([c]).find(|(_, address)| *address == Some(0));
                absent.map(|(name, _)| format!("{name} has no address"))
            })
        })
    }
}

impl Gpu {
    /// Multiplies, in the order of the stream.
    ///
    /// # Errors
    /// When the operands do not fit together, cuBLASLt is missing, or has no algorithm for them.
    pub fn matmul(&'static self, product: &MatMul) -> Result<()> {
        if let Some(why) = product.fault() {
            return Err(Error::Kernel { name: "matmul".to_owned(), why: format!("{why}: {product:?}") });
        }
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        let _turn = self.enter()?;
        if product.fixed && product.m <= SKINNY_ROWS {
            return self.matmul_batch_invariant(product);
        }
        let by_library = {
            let mut products = lock(&self.products);
            if products.is_none() {
                *products = Some(GemmPlans::new(self)?);
            }
            let Some(products) = products.as_mut() else { return Ok(()) };
            products.run(product, if product.aside { self.second } else { self.stream }.cast())?
        };
        if !by_library {
            return self.matmul_batch_invariant(product);
        }
        let counter = if product.fixed { &self.fixed_matmuls } else { &self.matmuls };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Version of cuBLASLt, 130002 for 13.0.2.
    ///
    /// # Errors
    /// When it is missing.
    pub fn cublaslt_version(&self) -> Result<usize> {
        // SAFETY: no arguments.
        Ok(unsafe { (lt::functions()?.cublasLtGetVersion)() })
    }
}
