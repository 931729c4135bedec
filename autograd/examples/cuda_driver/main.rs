//! Checks the CUDA layer on a GPU: `cargo run --release -p autograd --example cuda_driver [ORDINAL]`.
//!
//! Prints one line a check, measured or compared with f64 on the host; the last line is `DRIVER OK` or `DRIVER FAIL n`.

#![allow(clippy::print_stdout)]

mod data;
mod graphs;
mod products;

use std::process::ExitCode;
use std::time::Instant;

use autograd::Result;
use autograd::cuda::{Arg, Buffer, DType, Function, Gpu, GraphMemory, MatMul, compile};

use crate::data::{matrix, random, same};

const KERNELS: &str = r#"
extern "C" __global__ void scale_add(float* y, const float* x, unsigned n, float s, int offset) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = s * x[i] + (float)offset;
}
// Reverses each block's values through dynamic shared memory, at its far end.
extern "C" __global__ void reverse(float* y, const float* x, unsigned shared_floats) {
    extern __shared__ float tile[];
    float* last = tile + shared_floats - blockDim.x;
    last[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = last[blockDim.x - 1 - threadIdx.x];
}
"#;

/// The table, and how many of its lines failed.
struct Report(usize);

impl Report {
    fn line(&mut self, name: &str, outcome: std::result::Result<String, String>) {
        let (word, detail) = match outcome {
            Ok(detail) => ("ok", detail),
            Err(why) => {
                self.0 += 1;
                ("FAIL", why)
            }
        };
        println!("{word:<5} {name:<34} {detail}");
    }

    /// A line for a check that may fail by an error of the driver or by its own words.
    fn check(&mut self, name: &str, check: impl FnOnce() -> std::result::Result<String, Box<dyn std::error::Error>>) {
        self.line(name, check().map_err(|e| e.to_string()));
    }

    /// A line for a call that must be refused with `words` in the message.
    fn refused<T>(&mut self, name: &str, result: Result<T>, words: &[&str]) {
        self.line(
            name,
            match result {
                Ok(_) => Err("was accepted".to_owned()),
                Err(e) if words.iter().all(|word| e.to_string().contains(word)) => Ok(e.to_string()),
                Err(e) => Err(format!("does not say {words:?}: {e}")),
            },
        );
    }
}

fn transfers(gpu: &'static Gpu, report: &mut Report) {
    for count in [0, 1, 1000, 16 << 20, (50 << 20) + 3] {
        report.check(&format!("upload, download of {count} f32"), || {
            let host = random(count);
            let start = Instant::now();
            let buffer = gpu.upload(&host)?;
            gpu.synchronize()?;
            let up = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let back: Vec<f32> = gpu.download(&buffer, 0, count)?;
            let down = start.elapsed().as_secs_f64();
            same(&back, &host)?;
            let rate = |seconds: f64| (count * 4) as f64 / seconds / 1e9;
            Ok(format!("up {:.1} GB/s, down {:.1} GB/s", rate(up), rate(down)))
        });
    }
    report.check("many small uploads in flight", || {
        let buffer = gpu.alloc(4 * 5000)?;
        let start = Instant::now();
        for i in 0..5000i32 {
            gpu.upload_into(&buffer, 4 * i as usize, &[i])?;
        }
        let each = start.elapsed().as_secs_f64() / 5000.0;
        let back: Vec<i32> = gpu.download(&buffer, 0, 5000)?;
        if back != (0..5000).collect::<Vec<_>>() {
            return Err("other values came back".into());
        }
        Ok(format!("{:.1} us each", each * 1e6))
    });
    report.check("copy, fill, offsets", || {
        let host = random(1000);
        let (from, to) = (gpu.upload(&host)?, gpu.alloc(4000)?);
        gpu.fill_zero(&to)?;
        gpu.copy(&from, 400, &to, 800, 1200)?;
        let back: Vec<f32> = gpu.download(&to, 0, 1000)?;
        let expected = [&vec![0.0; 200][..], &host[100..400], &vec![0.0; 500]].concat();
        same(&back, &expected)?;
        gpu.fill_bytes(&to, 0xff)?;
        let poisoned: Vec<f32> = gpu.download(&to, 400, 900)?;
        if !poisoned.iter().all(|x| x.is_nan()) {
            return Err("poison is not NaN".into());
        }
        Ok("as on the host".to_owned())
    });
    report.check("pending download", || {
        let host = random(1 << 20);
        let buffer = gpu.upload(&host)?;
        let pending = gpu.download_async::<f32>(&buffer, 4096, 1000)?;
        gpu.fill_zero(&buffer)?;
        drop(gpu.download_async::<f32>(&buffer, 0, 1000)?);
        same(&pending.wait()?, &host[1024..2024])?;
        Ok("values of its own time".to_owned())
    });
    let buffer = gpu.alloc(100);
    let outside = buffer.and_then(|buffer| gpu.upload_into(&buffer, 90, &[0u8; 11]));
    report.refused("upload past the end", outside, &["upload", "100"]);
}

/// The example's own kernels; those of the program are loaded the same way, by name.
fn load(gpu: &'static Gpu) -> Result<(Function, Function)> {
    let module = gpu.load(&compile("example.cu", KERNELS, gpu.arch())?)?;
    Ok((module.function("scale_add")?, module.function("reverse")?))
}

fn kernels(gpu: &'static Gpu, report: &mut Report, scale: &Function, reverse: &Function) {
    report.check("kernel launch", || {
        let host = random(100_000);
        let (x, y) = (gpu.upload(&host)?, gpu.alloc(400_000)?);
        gpu.fill_bytes(&y, 0xff)?;
        let args = [Arg::from(&y), (&x).into(), 100_000u32.into(), 2.0f32.into(), (-3).into()];
        gpu.launch_function(scale, [391, 1, 1], [256, 1, 1], 0, &args)?;
        let expected: Vec<f32> = host.iter().map(|x| 2.0 * x - 3.0).collect();
        same(&gpu.download(&y, 0, 100_000)?, &expected)?;
        Ok(format!("{} launch counted", scale.launches()))
    });
    report.check("kernel with 96 KiB of shared memory", || {
        let host = random(1024);
        let (x, y) = (gpu.upload(&host)?, gpu.alloc(4096)?);
        let args = [Arg::from(&y), (&x).into(), (96u32 << 8).into()];
        gpu.launch_function(reverse, [4, 1, 1], [256, 1, 1], 96 << 10, &args)?;
        let expected: Vec<f32> = host.chunks(256).flat_map(|block| block.iter().rev().copied()).collect();
        same(&gpu.download(&y, 0, 1024)?, &expected)?;
        Ok("allowed on demand".to_owned())
    });
    let launch = |args: &[Arg], block, shared| gpu.launch_function(reverse, [1, 1, 1], [block, 1, 1], shared, args);
    let (null, n) = (Arg::Ptr(0), Arg::U32(0));
    report.refused("too few arguments", launch(&[null], 32, 0), &["reverse", "3 parameters"]);
    report.refused("an argument of the wrong size", launch(&[null, n, n], 32, 0), &["parameter 1 has 8 bytes"]);
    report.refused("a block too large", launch(&[null, null, n], 4096, 0), &["launch of reverse", "block [4096"]);
    report.refused("too much shared memory", launch(&[null, null, n], 32, 1 << 20), &["shared memory"]);
    report.refused("an unknown kernel", gpu.launch("no_such", [1; 3], [32, 1, 1], 0, &[]), &["no_such"]);
    report.check("kernels of the program", || {
        let start = Instant::now();
        gpu.prepare_kernels(&|line| println!("      {line}"))?;
        Ok(format!("prepared in {:.2} s", start.elapsed().as_secs_f64()))
    });
}

fn memory(gpu: &'static Gpu, report: &mut Report) {
    report.check("a steady state allocates nothing", || {
        let step = || -> Result<()> {
            let buffers: Vec<Buffer> = (0..200).map(|i| gpu.alloc(1000 + i * i * 997)).collect::<Result<_>>()?;
            buffers.iter().step_by(10).try_for_each(|buffer| gpu.fill_bytes(buffer, 1))
        };
        step()?;
        let before = gpu.memory();
        let start = Instant::now();
        for _ in 0..100 {
            step()?;
        }
        let each = start.elapsed().as_secs_f64() / 20_000.0;
        let after = gpu.memory();
        if after.driver_allocations != before.driver_allocations || after.in_use != before.in_use {
            return Err(format!("{before:?} became {after:?}").into());
        }
        Ok(format!("20,000 buffers, {:.2} us each, {} MiB reserved", each * 1e6, after.reserved >> 20))
    });
    let total = gpu.info().total_bytes;
    report.refused("more than the GPU has", gpu.alloc(2 * total), &["out of memory on cuda:", "free on the GPU"]);
    report.check("cached memory goes back before an error", || {
        gpu.release_cached()?;
        let free = gpu.free_bytes()?;
        let half = free / 5 * 3;
        drop(gpu.alloc(half)?);
        let cached = gpu.memory();
        drop(gpu.alloc(half / 3 * 4)?);
        let frees = gpu.memory().driver_frees - cached.driver_frees;
        let returned = gpu.release_cached()?;
        if frees == 0 { Err("nothing was returned".into()) } else { Ok(format!("{} GiB held", returned >> 30)) }
    });
    let held = gpu.memory();
    gpu.set_memory_limit(Some(held.reserved + (100 << 20)));
    // More than the segments have room for, all together, and more than may be added.
    let room = held.reserved - held.in_use;
    report.refused("more than the limit", gpu.alloc(room + (101 << 20)), &["limit"]);
    // Blocks of this size come in steps of 8 MiB.
    report.check("up to the limit", || {
        let buffer = gpu.alloc(96 << 20)?;
        Ok(format!("{buffer:?}"))
    });
    gpu.set_memory_limit(None);
    report.check("a reserve", || {
        gpu.release_cached()?;
        gpu.reserve(1 << 30)?;
        let before = gpu.memory();
        let buffers: Vec<Buffer> = (0..8).map(|_| gpu.alloc(128 << 20)).collect::<Result<_>>()?;
        let after = gpu.memory();
        drop(buffers);
        gpu.release_cached()?;
        if after.driver_allocations != before.driver_allocations || gpu.memory().reserved < 1 << 30 {
            return Err(format!("{before:?} became {after:?}").into());
        }
        Ok("holds buffers to its last byte and stays".to_owned())
    });
}

fn speed(gpu: &'static Gpu, report: &mut Report, scale: &Function) {
    report.check("bf16 8192 x 8192 x 8192", || {
        const N: usize = 8192;
        let (a, b) = (matrix(gpu, DType::Bf16, N * N)?, matrix(gpu, DType::Bf16, N * N)?);
        let d = gpu.alloc(2 * N * N)?;
        let call = MatMul::nt(a.buffer.ptr(), b.buffer.ptr(), d.ptr(), N, N, N, DType::Bf16, DType::Bf16);
        (0..3).try_for_each(|_| gpu.matmul(&call))?;
        let start = gpu.event()?;
        (0..10).try_for_each(|_| gpu.matmul(&call))?;
        let ms = f64::from(start.elapsed_ms(&gpu.event()?)?) / 10.0;
        Ok(format!("{ms:.3} ms, {:.0} TFLOP/s", 2.0 * (N as f64).powi(3) / ms / 1e9))
    });
    report.check("host time of a call", || {
        let x = gpu.alloc(4096)?;
        let args = [Arg::from(&x), (&x).into(), 1024u32.into(), 1.0f32.into(), 0.into()];
        let call = MatMul::nt(x.ptr(), x.ptr(), x.ptr(), 16, 16, 16, DType::Bf16, DType::Bf16);
        let launch = || gpu.launch_function(scale, [4, 1, 1], [256, 1, 1], 0, &args);
        let time = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
            (0..100).try_for_each(|_| run())?;
            gpu.synchronize()?;
            let start = Instant::now();
            (0..1000).try_for_each(|_| run())?;
            let host = start.elapsed().as_secs_f64() * 1e3;
            gpu.synchronize()?;
            Ok(host)
        };
        let (launches, products) = (time(&launch)?, time(&|| gpu.matmul(&call))?);
        let memory = GraphMemory::new(gpu);
        let graph = gpu.capture(&memory, || (0..100).try_for_each(|_| launch()))?;
        graph.launch()?;
        let start = gpu.event()?;
        (0..10).try_for_each(|_| graph.launch())?;
        let replay = f64::from(start.elapsed_ms(&gpu.event()?)?);
        Ok(format!("launch {launches:.2} us, product {products:.2} us; kernel in a graph {replay:.2} us on the GPU"))
    });
}

fn main() -> ExitCode {
    let ordinal = std::env::args().nth(1).map_or(Ok(0), |number| number.parse());
    let Ok(ordinal) = ordinal else {
        println!("usage: cuda_driver [ORDINAL]");
        return ExitCode::FAILURE;
    };
    let gpu = match Gpu::get(ordinal) {
        Ok(gpu) => gpu,
        Err(e) => {
            println!("{e}");
            return ExitCode::FAILURE;
        }
    };
    println!("{:?}, {}", gpu.info(), gpu.arch());
    match gpu.cublaslt_version() {
        Ok(version) => println!("cuBLASLt {version}"),
        Err(e) => println!("{e}"),
    }
    let mut report = Report(0);
    report.refused("a GPU that is not there", Gpu::get(60), &["cuda:60", "GPU"]);
    transfers(gpu, &mut report);
    match load(gpu) {
        Ok((scale, reverse)) => {
            kernels(gpu, &mut report, &scale, &reverse);
            products::products(gpu, &mut report);
            graphs::graphs(gpu, &mut report, &scale);
            speed(gpu, &mut report, &scale);
        }
        Err(e) => report.line("compile and load", Err(e.to_string())),
    }
    memory(gpu, &mut report);
    println!("{:?}", gpu.memory());
    println!("{:?}", gpu.launches());
    if report.0 > 0 {
        println!("DRIVER FAIL {}", report.0);
        return ExitCode::FAILURE;
    }
    println!("DRIVER OK");
    ExitCode::SUCCESS
}
