//! The shapes that `scripts/bench/gpu` gives to torch too: products, attention, a distillation loss. Best of three runs of
//! several calls with the queue kept full, as it times torch.

use std::hint::black_box;
use std::time::Instant;

use autograd::cuda::Gpu;
use autograd::ops::{self, Attention, Distill, Divergence, Sequences};
use autograd::{Device, Result, Tape, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Rows, inputs, outputs: large; Qwen3-4B in training, its head; its decode steps.
const LINEAR: [[usize; 3]; 8] = [
    [8192, 8192, 8192],
    [4096, 2560, 9728],
    [4096, 2560, 2560],
    [2048, 2560, 151_936],
    [1, 2560, 9728],
    [16, 2560, 9728],
    [64, 2560, 9728],
    [256, 2560, 9728],
];
/// Sequences, heads, tokens of a sequence, width of a head.
const ATTENTION: [[usize; 4]; 2] = [[4, 16, 4096, 128], [8, 16, 1024, 128]];
/// Tokens, hidden width, vocabulary.
const JSD: [usize; 3] = [8192, 4096, 128_256];

pub(crate) fn run(device: Device, trial: bool) -> Result<()> {
    let mut random = Random(1);
    for shape in if trial { vec![[4, 64, 96]] } else { LINEAR.to_vec() } {
        linear(device, &mut random, shape)?;
    }
    for shape in if trial { vec![[1, 2, 64, 64]] } else { ATTENTION.to_vec() } {
        attention(device, &mut random, shape)?;
    }
    jsd(device, &mut random, if trial { [16, 64, 512] } else { JSD })
}

/// Values in -1..1, each from its row's own generator: gigabytes in a second.
struct Random(u64);

impl Random {
    fn values(&mut self, [rows, cols]: [usize; 2], scale: f32) -> Vec<f32> {
        let first = self.0;
        self.0 += rows as u64;
        let mut values = vec![0.0; rows * cols];
        values.par_chunks_mut(cols).enumerate().for_each(|(i, row)| {
            let mut state = (first + i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            for value in row {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *value = ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale;
            }
        });
        values
    }

    fn rows(&mut self, device: Device, shape: [usize; 2]) -> Result<Tensor> {
        Tensor::new(device, self.values(shape, 1.7), shape)
    }

    fn weight(&mut self, device: Device, shape: [usize; 2]) -> Result<Tensor> {
        Tensor::weight(device, self.values(shape, 0.035), shape)
    }
}

/// Seconds of one call.
fn best(device: Device, calls: u32, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..3 {
        call()?;
    }
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    Ok(best)
}

fn line(name: &str, seconds: f64, more: &[(&str, Value)]) {
    let mut line = json!({"name": name, "seconds": seconds});
    more.iter().for_each(|(key, value)| line[*key] = value.clone());
    println!("{line}");
}

fn linear(device: Device, random: &mut Random, [m, k, n]: [usize; 3]) -> Result<()> {
    let (x, w) = (random.rows(device, [m, k])?, random.weight(device, [n, k])?);
    let seconds = best(device, 20, || {
        black_box(ops::linear(&mut Tape::off(), &x, &w, None)?);
        Ok(())
    })?;
    let tflops = 2.0 * m as f64 * k as f64 * n as f64 / seconds / 1e12;
    line(&format!("linear {m}x{k}x{n}"), seconds, &[("tflops", json!(tflops))]);
    Ok(())
}

/// As many key-value heads as heads. Gradients of queries, keys and values from given ones of the output.
fn attention(device: Device, random: &mut Random, [b, heads, s, d]: [usize; 4]) -> Result<()> {
    let sequences = Sequences::from_lengths(&vec![s; b]);
    let qkv = random.rows(device, [b * s, 3 * heads * d])?;
    let upstream = random.rows(device, [b * s, heads * d])?;
    let scale = 1.0 / (d as f32).sqrt();
    let forward = |tape: &mut Tape| {
        let op = Attention { sequences: sequences.clone(), heads, kv_heads: heads, scale, window: None };
        ops::attention(tape, op, &qkv)
    };
    let alone = best(device, 5, || {
        black_box(forward(&mut Tape::off())?);
        Ok(())
    })?;
    let both = best(device, 5, || {
        let mut tape = Tape::recording();
        tape.require_grad(&qkv);
        let y = forward(&mut tape)?;
        black_box(tape.backward(&y, upstream.clone())?);
        Ok(())
    })?;
    let flops = 2.0 * (b * heads * s * s * d) as f64;
    for (way, seconds, times) in [("forward", alone, 1.0), ("both", both, 3.5)] {
        let tflops = times * flops / seconds / 1e12;
        line(&format!("attention {way} {b}x{heads}x{s}x{d}"), seconds, &[("tflops", json!(tflops))]);
    }
    Ok(())
}

/// Loss and gradients of hidden states and head. The peak counts both heads, hidden states and gradients.
fn jsd(device: Device, random: &mut Random, [t, h, vocab]: [usize; 3]) -> Result<()> {
    let (hidden, target) = (random.rows(device, [t, h])?, random.rows(device, [t, h])?);
    let (head, target_head) = (random.weight(device, [vocab, h])?, random.weight(device, [vocab, h])?);
    let (targets, weights) = (vec![0; t], vec![1.0 / t as f32; t]);
    let distill = Distill { divergence: Divergence::Jsd { beta: 0.5 }, temperature: 1.0 };
    let gpu = match device {
        Device::Cuda(ordinal) => Some(Gpu::get(ordinal)?),
        Device::Cpu | Device::Reference => None,
    };
    if let Some(gpu) = gpu {
        gpu.release_cached()?;
        gpu.reset_peak();
    }
    let seconds = best(device, 2, || {
        let mut tape = Tape::recording();
        tape.require_grad(&hidden);
        tape.require_grad(&head);
        let (loss, _) =
            ops::linear_distill(&mut tape, [&hidden, &head], [&target, &target_head], &targets, &weights, &distill)?;
        black_box(tape.backward(&loss, Tensor::scalar(device, 1.0)?)?);
        Ok(())
    })?;
    let peak = gpu.map(|gpu| gpu.memory().peak_in_use);
    line(&format!("jsd {t}x{h}x{vocab}"), seconds, &[("peak_bytes", json!(peak))]);
    Ok(())
}
