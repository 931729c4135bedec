//! What cuBLASLt needs for a product, kept by shape.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::{from_ref, null_mut};

use super::batch_invariant::Proofs;
use super::cublaslt::{self as lt, Functions, Handle, Heuristic, check};
use super::gpu::Gpu;
use super::matmul::{DType, MatMul};
use super::pool::Buffer;
use crate::Result;

/// Bytes that an algorithm of cuBLASLt may use besides the operands; NVIDIA's advice for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Bytes that the workspaces of both streams take.
pub const WORKSPACES: usize = 2 * WORKSPACE;
/// The status of a library without an algorithm for what is asked.
const NOT_SUPPORTED: lt::Status = 15;
/// Shapes kept; a training run meets a new number of rows in most steps.
const MAX_PLANS: usize = 8192;

/// What an algorithm depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    shape: [usize; 3],
    strides: [usize; 4],
    transposed: [bool; 2],
    types: [DType; 2],
    bias: bool,
    fixed: bool,
    alignment: [u32; 4],
}

impl Key {
    fn of(product: &MatMul) -> Self {
        // Algorithms differ in the alignment they need; 16 bytes satisfy nearly all, 256 all of them.
        let aligned = |address: u64| address.trailing_zeros().min(8);
        let c = if product.beta == 0.0 { (0, 8) } else { (product.ldc, aligned(product.c)) };
        Self {
            shape: [product.m, product.n, product.k],
            strides: [product.lda, product.ldb, c.0, product.ldd],
            transposed: [product.transpose_a, product.transpose_b],
            types: [product.ab, product.d_type],
            bias: product.bias.is_some(),
            fixed: product.fixed,
            alignment: [aligned(product.a), aligned(product.b), c.1, aligned(product.d)],
        }
    }
}

/// cuBLASLt on one GPU.
pub(super) struct GemmPlans {
    pub(super) functions: &'static Functions,
    pub(super) handle: Handle,
    /// Of the GPU's stream and of its second one.
    pub(super) workspaces: [Buffer; 2],
    plans: HashMap<Key, Plan>,
    pub(super) proofs: Proofs,
}

// SAFETY: handle and descriptors may move between threads; the GPU's lock keeps them to one at a time.
unsafe impl Send for GemmPlans {}

impl GemmPlans {
    pub(super) fn new(gpu: &'static Gpu) -> Result<Self> {
        let functions = lt::functions()?;
        let workspaces = [gpu.alloc_lasting(WORKSPACE)?, gpu.alloc_lasting(WORKSPACE)?];
        let mut handle = null_mut();
        // SAFETY: writes one handle, which lives as long as the process; the context is current.
        let status = unsafe { (functions.cublasLtCreate)(&raw mut handle) };
        check(|| "cublasLtCreate".to_owned(), status)?;
        Ok(Self { functions, handle, workspaces, plans: HashMap::new(), proofs: Proofs::default() })
    }

    /// False where a fixed order is asked for that no algorithm has.
    pub(super) fn run(&mut self, product: &MatMul, stream: *mut c_void) -> Result<bool> {
        let key = Key::of(product);
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            let mut plan = Plan::new(self.functions, product)?;
            plan.heuristic = if product.fixed {
                self.proven(&plan, product, &key)?
            } else {
                Some(plan.choose(self.handle, product, &key)?)
            };
            self.plans.insert(key.clone(), plan);
        }
        let plan = &self.plans[&key];
        let Some(heuristic) = &plan.heuristic else { return Ok(false) };
        self.launch(plan, heuristic, product, stream)?;
        Ok(true)
    }

    pub(super) fn launch(
        &self,
        plan: &Plan,
        heuristic: &Heuristic,
        product: &MatMul,
        stream: *mut c_void,
    ) -> Result<()> {
        if let Some(bias) = product.bias {
            plan.set(lt::DESC_BIAS_POINTER, &bias)?;
        }
        let pointer = |address: u64| address as *const c_void;
        let c = if product.beta == 0.0 { product.d } else { product.c };
        // SAFETY: the descriptors describe these operands and live as long as the plan; the workspace is this GPU's.
        // That the addresses are those of large enough buffers is the caller's care.
        let status = unsafe {
            (self.functions.cublasLtMatmul)(
                self.handle,
                plan.desc,
                from_ref(&product.alpha).cast(),
                pointer(product.b),
                plan.layouts[0],
                pointer(product.a),
                plan.layouts[1],
                from_ref(&product.beta).cast(),
                pointer(c),
                plan.layouts[2],
                product.d as *mut c_void,
                plan.layouts[3],
                &raw const heuristic.algorithm,
                self.workspaces[usize::from(product.aside)].ptr() as *mut c_void,
                heuristic.workspace,
                stream,
            )
        };
        check(|| format!("cublasLtMatmul of {product:?}"), status)
    }
}

/// Descriptors and algorithm of one shape.
pub(super) struct Plan {
    functions: &'static Functions,
    pub(super) desc: lt::MatmulDesc,
    /// Of our B, our A, C and D.
    pub(super) layouts: [lt::Layout; 4],
    /// None where the product is left to a kernel of ours.
    heuristic: Option<Heuristic>,
}

impl Plan {
    /// The descriptors, without an algorithm.
    pub(super) fn new(functions: &'static Functions, product: &MatMul) -> Result<Self> {
        let mut plan = Self { functions, desc: null_mut(), layouts: [null_mut(); 4], heuristic: None };
        // SAFETY: writes one handle.
        let status = unsafe { (functions.cublasLtMatmulDescCreate)(&raw mut plan.desc, lt::COMPUTE_32F, lt::R_32F) };
        check(|| "cublasLtMatmulDescCreate".to_owned(), status)?;
        if product.transpose_b {
            plan.set(lt::DESC_TRANSA, &lt::OP_T)?;
        }
        if product.transpose_a {
            plan.set(lt::DESC_TRANSB, &lt::OP_T)?;
        }
        if let Some(bias) = product.bias {
            plan.set(lt::DESC_EPILOGUE, &lt::EPILOGUE_BIAS)?;
            plan.set(lt::DESC_BIAS_POINTER, &bias)?;
            plan.set(lt::DESC_BIAS_DATA_TYPE, &product.d_type.code())?;
        }
        let MatMul { m, n, k, .. } = *product;
        // Our rows and columns of the stored matrices; theirs are the other way round.
        let b = if product.transpose_b { (n, k) } else { (k, n) };
        let a = if product.transpose_a { (k, m) } else { (m, k) };
        let ldc = if product.beta == 0.0 { product.ldd } else { product.ldc };
        let matrices = [
            (b, product.ldb, product.ab),
            (a, product.lda, product.ab),
            ((m, n), ldc, product.d_type),
            ((m, n), product.ldd, product.d_type),
        ];
        for (layout, ((rows, cols), distance, of)) in plan.layouts.iter_mut().zip(matrices) {
            let distance = i64::try_from(distance).unwrap_or(i64::MAX);
            // SAFETY: writes one handle.
            let status = unsafe {
                (functions.cublasLtMatrixLayoutCreate)(layout, of.code(), cols as u64, rows as u64, distance)
            };
            check(|| "cublasLtMatrixLayoutCreate".to_owned(), status)?;
        }
        Ok(plan)
    }

    /// The algorithm that the library expects to be fastest.
    fn choose(&self, handle: Handle, product: &MatMul, key: &Key) -> Result<Heuristic> {
        let ranked = self.ranked(handle, product, key, Search { count: 1, may_split: true })?;
        if ranked.is_empty() {
            check(|| format!("cublasLtMatmulAlgoGetHeuristic of {product:?}"), NOT_SUPPORTED)?;
        }
        Ok(ranked[0])
    }

    /// Algorithms in the order in which the library would choose them.
    pub(super) fn ranked(&self, handle: Handle, product: &MatMul, key: &Key, search: Search) -> Result<Vec<Heuristic>> {
        let functions = self.functions;
        let mut wish = Wish { functions, preference: null_mut() };
        // SAFETY: writes one handle.
        let status = unsafe { (functions.cublasLtMatmulPreferenceCreate)(&raw mut wish.preference) };
        check(|| "cublasLtMatmulPreferenceCreate".to_owned(), status)?;
        wish.set(lt::PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        if !search.may_split {
            wish.set(lt::PREF_REDUCTION_SCHEME_MASK, &0u32)?;
        }
        let [a, b, c, d] = key.alignment.map(|log| 1u32 << log);
        for (attribute, bytes) in (lt::PREF_MIN_ALIGNMENT_A_BYTES..).zip([b, a, c, d]) {
            wish.set(attribute, &bytes)?;
        }
        let (mut ranked, mut found) = (vec![Heuristic::default(); search.count], 0);
        let [b, a, c, d] = self.layouts;
        // SAFETY: all descriptors are alive; writes at most as many results as there is room for, and a count.
        let status = unsafe {
            (functions.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                self.desc,
                b,
                a,
                c,
                d,
                wish.preference,
                c_int::try_from(search.count).unwrap_or(c_int::MAX),
                ranked.as_mut_ptr(),
                &raw mut found,
            )
        };
        if status == NOT_SUPPORTED {
            return Ok(vec![]);
        }
        check(|| format!("cublasLtMatmulAlgoGetHeuristic of {product:?}"), status)?;
        ranked.truncate(usize::try_from(found).unwrap_or(0));
        ranked.retain(|algorithm| algorithm.state == 0);
        Ok(ranked)
    }

    fn set<T>(&self, attribute: c_int, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive; reads the value, whose size is given.
        let status = unsafe {
            (self.functions.cublasLtMatmulDescSetAttribute)(
                self.desc,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(|| format!("cublasLtMatmulDescSetAttribute {attribute}"), status)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: created by this plan, destroyed once.
            unsafe { (self.functions.cublasLtMatrixLayoutDestroy)(layout) };
        }
        if !self.desc.is_null() {
            // SAFETY: as above.
            unsafe { (self.functions.cublasLtMatmulDescDestroy)(self.desc) };
        }
    }
}

/// How many algorithms are looked for, and whether they may cut K into parts that are added up afterwards.
#[derive(Clone, Copy)]
pub(super) struct Search {
    pub(super) count: usize,
    pub(super) may_split: bool,
}

/// A preference, destroyed with the value.
struct Wish {
    functions: &'static Functions,
    preference: lt::Preference,
}

impl Wish {
    fn set<T>(&self, attribute: c_int, value: &T) -> Result<()> {
        // SAFETY: the preference is alive; reads the value, whose size is given.
        let status = unsafe {
            (self.functions.cublasLtMatmulPreferenceSetAttribute)(
                self.preference,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(|| format!("cublasLtMatmulPreferenceSetAttribute {attribute}"), status)
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        if !self.preference.is_null() {
            // SAFETY: created by cublasLtMatmulPreferenceCreate, destroyed once.
            unsafe { (self.functions.cublasLtMatmulPreferenceDestroy)(self.preference) };
        }
    }
}
