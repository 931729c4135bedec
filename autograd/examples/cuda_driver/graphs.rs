//! Graphs: what they compute, whose memory they use, and what may not be captured.

use autograd::cuda::{Buffer, DType, Function, Gpu, GraphMemory, MatMul};
use autograd::{Error, Result};

use crate::Report;
use crate::data::{error_of, random};

pub(crate) fn graphs(gpu: &'static Gpu, report: &mut Report, scale: &Function) {
    const N: usize = 64;
    let memory = GraphMemory::new(gpu);
    report.check("graph: kernels, product, memory", || {
        let (x, w) = (random(N * N), random(N * N));
        let (input, weight) = (gpu.upload(&x)?, gpu.upload(&w)?);
        let count = (N * N) as u32;
        let scaled = |y: &Buffer, x: &Buffer, s: f32, offset: i32| {
            gpu.launch_function(scale, [count.div_ceil(256), 1, 1], [256, 1, 1], 0, &[
                y.into(),
                x.into(),
                count.into(),
                s.into(),
                offset.into(),
            ])
        };
        let mut output = None;
        let mut step = || -> Result<()> {
            let first = gpu.alloc(4 * N * N)?;
            scaled(&first, &input, 2.0, 0)?;
            let second = gpu.alloc(4 * N * N)?;
            gpu.matmul(&MatMul::nn(first.ptr(), weight.ptr(), second.ptr(), N, N, N, DType::F32, DType::F32))?;
            drop(first);
            let third = gpu.alloc(4 * N * N)?;
            scaled(&third, &second, 1.0, 1)?;
            output = Some(third);
            Ok(())
        };
        step()?;
        let (before, launched) = (gpu.memory(), scale.launches());
        let graph = gpu.capture(&memory, &mut step)?;
        let output = output.ok_or("the step ran")?;
        // Other work between the replays must not touch the graph's memory.
        let mut results = Vec::new();
        for round in 0..3 {
            let x = random(N * N);
            gpu.upload_into(&input, 0, &x)?;
            let noise = gpu.alloc(1 << 20)?;
            gpu.fill_bytes(&noise, 0xff)?;
            gpu.fill_bytes(&output, 0xff)?;
            graph.launch()?;
            let expected: Vec<f64> = (0..N * N)
                .map(|at| {
                    let (i, j) = (at / N, at % N);
                    (0..N).map(|l| 2.0 * f64::from(x[i * N + l]) * f64::from(w[l * N + j])).sum::<f64>() + 1.0
                })
                .collect();
            let error = error_of(&gpu.download(&output, 0, N * N)?, &expected);
            if error.is_nan() || error > 1e-5 {
                return Err(format!("replay {round}: relative error {error:.1e}").into());
            }
            results.push(error);
        }
        let grown = gpu.memory().driver_allocations - before.driver_allocations;
        let products = gpu.launches().into_iter().find(|(name, _)| *name == "matmul").map_or(0, |(_, n)| n);
        drop((output, graph));
        let worst = results.into_iter().fold(0.0, f64::max);
        let counted = scale.launches() - launched;
        Ok(format!(
            "3 replays, error {worst:.1e}; {} MiB of graph memory by {grown} allocation; {products} products and {counted} \
             own launches counted",
            memory.bytes() >> 20
        ))
    });
    let buffer = gpu.alloc(1024);
    let Ok(buffer) = buffer else { return report.line("graph", Err("no memory".to_owned())) };
    report.refused(
        "upload in a capture",
        gpu.capture(&memory, || gpu.upload_into(&buffer, 0, &[1u8])).map(drop),
        &["an upload inside the capture"],
    );
    let failing = gpu.capture(&memory, || {
        gpu.fill_zero(&buffer)?;
        Err(Error::Kernel { name: "mine".into(), why: "failed on purpose".into() })
    });
    report.refused("an error in a capture", failing.map(drop), &["failed on purpose"]);
    report.check("a buffer dropped in a capture", || {
        let mut source = Some(gpu.upload(&[7u8; 1024])?);
        let graph = gpu.capture(&memory, || {
            let source = source.take();
            source.map_or(Ok(()), |source| gpu.copy(&source, 0, &buffer, 0, 1024))
        })?;
        // The same size again: it must not get the block that the graph reads.
        let other = gpu.upload(&[9u8; 1024])?;
        graph.launch()?;
        let back: Vec<u8> = gpu.download(&buffer, 0, 1024)?;
        drop(other);
        if back.iter().all(|byte| *byte == 7) { Ok("is kept by the graph".into()) } else { Err("was reused".into()) }
    });
    report.check("another thread waits for a capture", || {
        let order = std::sync::Mutex::new(Vec::new());
        let note = |what: &'static str| order.lock().map(|mut order| order.push(what)).unwrap_or(());
        let graph = std::thread::scope(|scope| {
            gpu.capture(&memory, || {
                scope.spawn(|| {
                    let copied = gpu.upload(&[1u8; 64]).and_then(|b| gpu.download::<u8>(&b, 0, 64));
                    note(if copied.is_ok_and(|bytes| bytes == [1; 64]) { "upload" } else { "failed upload" });
                });
                std::thread::sleep(std::time::Duration::from_millis(50));
                note("capture");
                gpu.fill_zero(&buffer)
            })
        })?;
        graph.launch()?;
        let order = order.into_inner().unwrap_or_default();
        if order == ["capture", "upload"] { Ok("and then works".into()) } else { Err(format!("{order:?}").into()) }
    });
    drop(buffer);
    report.check("graph memory ends with its owner", || {
        gpu.synchronize()?;
        let before = gpu.memory();
        drop(memory);
        let after = gpu.memory();
        if before.driver_frees == after.driver_frees {
            return Err("nothing was returned".into());
        }
        Ok(format!("{} MiB returned", (before.reserved - after.reserved) >> 20))
    });
}
