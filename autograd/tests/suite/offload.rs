//! State and weights that wait on the host for a GPU, against those that stay on it.

use autograd::adamw::{AdamW, Moments, Step};
use autograd::stream::{Groups, Values};
use autograd::{Device, Error, Tensor, ops};

use super::support::{bits, random};

const GPU: Device = Device::Cuda(0);
/// Larger than the piece that is on the GPU at a time, and no multiple of it.
const LARGE: [usize; 2] = [2900, 3000];

#[test]
fn only_a_gpu_is_relieved_by_the_host() {
    let weight = Tensor::weight(Device::Cpu, vec![0.0; 32], [4, 8]).expect("memory");
    for refused in [Moments::zeros_offloaded(&weight).err(), Groups::new(Device::Cpu).err()] {
        assert!(matches!(refused, Some(Error::Device { .. })), "{refused:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn adamw_from_the_host_has_the_bits_of_adamw_on_the_card() {
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let shapes = [LARGE, [1, 24], [300, 64]];
    let mut runs = [Moments::zeros, Moments::zeros_offloaded].map(|zeros| {
        let weight = |(shape, key): ([usize; 2], u64)| {
            let w = Tensor::weight(GPU, random(shape[0] * shape[1], key), shape).expect("memory");
            let moments = zeros(&w).expect("memory");
            (w, moments)
        };
        shapes.into_iter().zip(1..).map(weight).collect::<Vec<_>>()
    });
    for number in 1..=3 {
        let grad = |i: usize| {
            let mut grad = runs[0][i].0.zeros_like().expect("memory");
            grad.set(random(grad.rows() * grad.cols(), 10 * number + i as u64)).expect("fills");
            grad
        };
        let grads: Vec<Tensor> = (0..shapes.len()).map(grad).collect();
        for run in &mut runs {
            let mut trained: Vec<_> = run.iter_mut().zip(&grads).map(|((w, moments), g)| (w, g, moments)).collect();
            adamw.update_all(&mut trained, Step { lr: 3e-3, number, grad_scale: 0.5 }).expect("runs");
        }
    }
    let [here, there] = &runs;
    for ((w, m), (w2, m2)) in here.iter().zip(there) {
        for (a, b) in [(w, w2), (&m.m, &m2.m), (&m.v, &m2.v), (m.master(w), m2.master(w2))] {
            assert!(bits(a) == bits(b), "{:?}", a.shape());
        }
    }
    // A restored state is the one that was exported.
    let (weight, mut moments) = (&there[0].0, there[0].1.clone());
    let values = moments.v.read().expect("there");
    moments.v.set(vec![0.0; values.len()]).expect("fills");
    assert!(moments.v.read().expect("there").iter().all(|v| *v == 0.0));
    moments.v.set(values.clone()).expect("fills");
    assert!(moments.v.read().expect("there") == values && weight.rows() == LARGE[0]);
}

#[test]
#[ignore = "needs a GPU"]
fn groups_from_the_host_are_the_tensors_that_were_given() {
    let mut groups = Groups::new(GPU).expect("a GPU");
    let values = |shape: [usize; 2], key| -> Values { (random(shape[0] * shape[1], key), shape) };
    let blocks = |group: u64| {
        vec![
            vec![values([1, 64], group)],
            vec![values([1024, 512], group + 10), values([8, 512], group + 20)],
            vec![values([512, 1024], group + 30)],
        ]
    };
    (0..5).for_each(|group| groups.push(&blocks(group)).expect("pinned"));
    let x = Tensor::new(GPU, random(512 * 600, 99), [600, 512]).expect("memory");
    let mut tape = autograd::Tape::off();
    // Twice through, and then out of order; work on a group runs while the next one comes.
    for index in [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2, 0, 0] {
        let got = groups.get(index).expect("there");
        let mut products = vec![];
        for _ in 0..20 {
            products.push(ops::linear(&mut tape, &x, &got[1], None).expect("fits"));
        }
        let given: Vec<Values> = blocks(index as u64).into_iter().flatten().collect();
        assert_eq!(got.len(), given.len());
        for (got, (values, shape)) in got.iter().zip(&given) {
            let want = Tensor::new(GPU, values.clone(), *shape).expect("memory");
            assert!(bits(got) == bits(&want), "group {index}, {shape:?}");
        }
        let want = Tensor::weight(GPU, given[1].0.clone(), given[1].1).expect("memory");
        let want = bits(&ops::linear(&mut tape, &x, &want, None).expect("fits"));
        assert!(products.iter().all(|p| bits(p) == want), "products with group {index}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn memory_beyond_the_limit_is_an_error_and_the_card_works_on() {
    let gpu = autograd::cuda::Gpu::get(0).expect("a GPU");
    let before = gpu.memory();
    gpu.set_memory_limit(Some(before.reserved + (8 << 20)));
    let refused = gpu.alloc(1 << 30).map(|_| ());
    gpu.set_memory_limit(None);
    let error = refused.expect_err("beyond the limit");
    assert!(matches!(error, Error::OutOfMemory { limit: Some(_), .. }), "{error}");
    let x = Tensor::new(GPU, vec![1.0; 64], [1, 64]).expect("memory");
    assert_eq!(ops::add(&mut autograd::Tape::off(), &x, &x).expect("runs").to_vec(), vec![2.0; 64]);
}
