//! Sixteen f32 lanes on whatever the machine has.
//!
//! Every instruction set computes the same operations in the same order with fused multiply-add, so a kernel written
//! over [`Simd`] gives the same bits on all of them. Sixteen lanes is also the height of a weight panel and the number
//! of tokens in a KV page.

#![allow(clippy::missing_safety_doc)]

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Lanes of a vector, rows of a weight panel, tokens of a KV page.
pub(crate) const LANES: usize = 16;

/// Sixteen-lane arithmetic.
///
/// SAFETY (all methods): the caller has checked that the processor has the instruction set; pointers address
/// [`LANES`] readable (or writable) values.
pub(crate) trait Simd: Copy {
    /// Sixteen values.
    type V: Copy;
    /// Whether 24 accumulators fit the register file.
    const WIDE: bool;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Asks for the cache line at `p`, which need not be readable.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `p * 2^n` where `t = n + 1.5 * 2^23`, for results in the normal range.
    unsafe fn scale_by_power(p: Self::V, t: Self::V) -> Self::V;
    /// Zero where `x < bound`, `v` elsewhere (also where x is NaN).
    unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V;

    /// Mantissa in [1, 2) and exponent of positive normal values.
    unsafe fn split(x: Self::V) -> (Self::V, Self::V);

    /// Natural logarithm of positive normal values (a NaN gives a NaN), relative error below 3e-7 (absolute near 1).
    ///
    /// With x = 2^e m and m in [1, 2): s = (m - c) / (m + c), ln m = ln c + 2 atanh(s), c = sqrt 2.
    #[inline(always)]
    unsafe fn ln(x: Self::V) -> Self::V {
        // SAFETY: forwarded to the caller.
        unsafe {
            let (m, e) = Self::split(x);
            let c = Self::splat(std::f32::consts::SQRT_2);
            let s = Self::div(Self::sub(m, c), Self::add(m, c));
            let s2 = Self::mul(s, s);
            let mut p = Self::splat(2.0 / 11.0);
            for k in [2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
                p = Self::fma(p, s2, Self::splat(k));
            }
            let half = Self::add(e, Self::splat(0.5));
            let ln = Self::fma(half, Self::splat(std::f32::consts::LN_2), Self::mul(p, s));
            // The bits of a NaN split like a number's; x - x gives it back.
            Self::add(ln, Self::sub(x, x))
        }
    }

    /// Sum of the lanes, always in the same tree order.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut a = [0.0f32; LANES];
        // SAFETY: `a` has LANES values.
        unsafe { Self::store(a.as_mut_ptr(), v) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                a[i] += a[i + width];
            }
            width /= 2;
        }
        a[0]
    }

    /// Largest lane.
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        let mut a = [0.0f32; LANES];
        // SAFETY: `a` has LANES values.
        unsafe { Self::store(a.as_mut_ptr(), v) };
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// e^x, relative error below 2e-7 for x in [-87.3, 88.3]; 0 below, the value at 88.3 above.
    ///
    /// Cody-Waite reduction by ln 2 in two parts and a degree-6 polynomial (Cephes `expf` coefficients).
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        const LOW: f32 = -87.3;
        // SAFETY: forwarded to the caller.
        unsafe {
            let magic = Self::splat(12_582_912.0);
            // `max` returns its second operand when one is NaN, so a NaN comes out as a NaN.
            let capped = Self::sub(Self::splat(0.0), Self::max(Self::splat(-88.3), Self::sub(Self::splat(0.0), x)));
            let capped = Self::max(Self::splat(LOW), capped);
            let t = Self::fma(capped, Self::splat(std::f32::consts::LOG2_E), magic);
            let n = Self::sub(t, magic);
            let r = Self::fma(n, Self::splat(-0.693_359_4), capped);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_2e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let p = Self::add(Self::fma(p, Self::mul(r, r), r), Self::splat(1.0));
            Self::zero_below(x, LOW, Self::scale_by_power(p, t))
        }
    }
}

/// Plain Rust, for processors without the vector units below.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    type V = [f32; LANES];
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller gives LANES readable values.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller gives LANES writable values.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn scale_by_power(p: Self::V, t: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(p[i].to_bits().wrapping_add(t[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
        let mantissa = lanes(|i| f32::from_bits((x[i].to_bits() & 0x007f_ffff) | 0x3f80_0000));
        (mantissa, lanes(|i| ((x[i].to_bits() >> 23) as i32 - 127) as f32))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::V, bound: f32, v: Self::V) -> Self::V {
        lanes(|i| if x[i] < bound { 0.0 } else { v[i] })
    }
}

/// The vector units that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Anything else.
    Scalar,
}

impl Isa {
    /// The best one this processor has.
    pub(crate) fn detect() -> Self {
        static FOUND: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    return Self::Avx512;
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Self::Avx2;
                }
            }
            Self::Scalar
        })
    }
}

/// Defines `fn $name(args)` that runs `$body::<S>` compiled for the processor's vector units.
///
/// The bodies are `#[inline(always)]` and generic over [`Simd`], so each is compiled once per instruction set.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            use $crate::cpu::simd::{Isa, Scalar};
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::cpu::simd::{Avx2, Avx512};
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx2>($($arg),*)
                }
                match Isa::detect() {
                    // SAFETY: detected on this processor.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: detected on this processor.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Scalar => {}
                }
            }
            let _ = Isa::detect;
            $body::<Scalar>($($arg),*)
        }
    };
}
pub(crate) use vectorized;
