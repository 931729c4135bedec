//! Matrix products against f64 on the host.

use autograd::cuda::{DType, Gpu, MatMul};
use autograd::{Error, Result};

use crate::Report;
use crate::data::{error_of, matrix, values};

/// A product with what the case varies.
#[derive(Clone, Copy, Default)]
struct Case {
    transpose: [bool; 2],
    ab_f32: bool,
    d_f32: bool,
    alpha: Option<f32>,
    /// beta, and whether C is D.
    c: Option<(f32, bool)>,
    bias: bool,
    /// Elements that rows of A, B and D are longer than their part.
    pad: [usize; 3],
}

/// Compares one product with f64 on the host; poisons what is not in D's part and checks that it stays.
fn product(gpu: &'static Gpu, [m, n, k]: [usize; 3], case: Case) -> std::result::Result<String, String> {
    let ab = if case.ab_f32 { DType::F32 } else { DType::Bf16 };
    let of = if case.d_f32 { DType::F32 } else { DType::Bf16 };
    let [ta, tb] = case.transpose;
    let (a_rows, a_cols) = if ta { (k, m) } else { (m, k) };
    let (b_rows, b_cols) = if tb { (n, k) } else { (k, n) };
    let (lda, ldb, ldd) = (a_cols + case.pad[0], b_cols + case.pad[1], n + case.pad[2]);
    let run = || -> Result<(Vec<f32>, Vec<f64>)> {
        let (a, b) = (matrix(gpu, ab, a_rows * lda)?, matrix(gpu, ab, b_rows * ldb)?);
        let (c, bias) = (matrix(gpu, of, m * ldd)?, matrix(gpu, of, n)?);
        let d = gpu.alloc(m * ldd * of.bytes())?;
        gpu.fill_bytes(&d, 0xff)?;
        let d = if matches!(case.c, Some((_, true))) { &c.buffer } else { &d };
        let (beta, alpha) = (case.c.map_or(0.0, |(beta, _)| beta), case.alpha.unwrap_or(1.0));
        let mut call = MatMul::nt(a.buffer.ptr(), b.buffer.ptr(), d.ptr(), m, n, k, ab, of)
            .strides(lda, ldb, ldd)
            .scaled(alpha)
            .plus(beta, c.buffer.ptr());
        (call.transpose_a, call.transpose_b) = (ta, tb);
        if case.bias {
            call = call.bias(bias.buffer.ptr());
        }
        gpu.matmul(&call)?;
        let got = values(gpu, of, d, m * ldd)?;
        let mut expected = vec![0.0; m * n];
        for (i, row) in expected.chunks_mut(n).enumerate() {
            for (j, out) in row.iter_mut().enumerate() {
                let sum: f64 = (0..k)
                    .map(|l| {
                        let a = a.values[if ta { l * lda + i } else { i * lda + l }];
                        let b = b.values[if tb { j * ldb + l } else { l * ldb + j }];
                        f64::from(a) * f64::from(b)
                    })
                    .sum();
                let extra = f64::from(beta) * f64::from(c.values[i * ldd + j]);
                *out = f64::from(alpha) * sum + extra + if case.bias { f64::from(bias.values[j]) } else { 0.0 };
            }
        }
        let inside = got.chunks(ldd).flat_map(|row| row[..n].to_vec()).collect();
        let untouched = |(at, x): (usize, &f32)| {
            at % ldd < n || if d.ptr() == c.buffer.ptr() { *x == c.values[at] } else { x.is_nan() }
        };
        if !got.iter().enumerate().all(untouched) {
            return Err(Error::Kernel { name: "matmul".into(), why: "wrote between the rows of D".into() });
        }
        Ok((inside, expected))
    };
    let (got, expected) = run().map_err(|e| e.to_string())?;
    // One rounding to bf16 is below 4e-3. Two in-place products reach 4.8e-3 on Hopper, also where splits of K may only be
    // added up in f32 (experiments/2026-11-gpu).
    let (error, limit) = (error_of(&got, &expected), if case.d_f32 { 1e-5 } else { 1e-2 });
    let text = format!("[{m}, {n}, {k}] relative error {error:.1e}, limit {limit:.0e}");
    if error < limit { Ok(text) } else { Err(text) }
}

pub(crate) fn products(gpu: &'static Gpu, report: &mut Report) {
    let shape = [96, 160, 256];
    let nt = Case { transpose: [false, true], ..Case::default() };
    let tn = Case { transpose: [true, false], ..Case::default() };
    let cases = [
        ("y = x Wt", shape, nt),
        ("y = x Wt, f32", shape, Case { d_f32: true, ..nt }),
        ("y = x Wt + residual", shape, Case { c: Some((1.0, false)), ..nt }),
        ("y = x Wt + residual, f32", shape, Case { c: Some((1.0, false)), d_f32: true, ..nt }),
        ("y = x Wt + bias", shape, Case { bias: true, ..nt }),
        ("y = x Wt + bias, f32", shape, Case { bias: true, d_f32: true, ..nt }),
        ("y = x Wt + bias + residual", shape, Case { bias: true, c: Some((1.0, false)), ..nt }),
        ("y += 0.5 x Wt", shape, Case { alpha: Some(0.5), c: Some((1.0, true)), ..nt }),
        ("decode, 1 row", [1, 160, 256], nt),
        ("decode, 7 rows + residual", [7, 160, 256], Case { c: Some((1.0, false)), ..nt }),
        ("LoRA rank 8", [96, 8, 256], nt),
        ("from LoRA rank 8", [96, 160, 8], Case { alpha: Some(2.0), c: Some((1.0, true)), ..nt }),
        ("parts of wider matrices", shape, Case { pad: [64, 32, 16], ..nt }),
        ("odd sizes and strides", [33, 57, 71], Case { pad: [3, 1, 5], ..nt }),
        ("dx = dy W", shape, Case::default()),
        ("dx += dy W", shape, Case { c: Some((1.0, true)), ..Case::default() }),
        ("dx = dy W, f32", shape, Case { d_f32: true, ..Case::default() }),
        ("dW = dyt x", shape, Case { d_f32: true, ..tn }),
        ("dW += dyt x", shape, Case { d_f32: true, c: Some((1.0, true)), ..tn }),
        ("dW += dyt x, long sum", [64, 48, 4096], Case { d_f32: true, c: Some((1.0, true)), ..tn }),
        ("both transposed", shape, Case { transpose: [true, true], ..nt }),
        ("all f32", shape, Case { ab_f32: true, d_f32: true, ..nt }),
        ("all f32, accumulated", shape, Case { ab_f32: true, d_f32: true, c: Some((1.0, true)), ..tn }),
    ];
    for (name, shape, case) in cases {
        report.line(&format!("matmul {name}"), product(gpu, shape, case));
    }
    let x = gpu.alloc(1 << 20);
    let wrong = x.and_then(|x| {
        let nt = MatMul::nt(x.ptr(), x.ptr(), x.ptr(), 8, 8, 64, DType::Bf16, DType::Bf16);
        gpu.matmul(&nt.strides(32, 64, 8))
    });
    report.refused("matmul, rows overlap", wrong, &["lda is 32", "64"]);
}
