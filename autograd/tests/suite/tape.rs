//! The tape: what it records, and in which order it adds.

use std::sync::Arc;

use autograd::ops::{self, Projection, QkRope, RopeTable};
use autograd::{Device, Error, Gradients, Result, Tape, Tensor};

use super::support::{Operand, bits, random};

/// A small residual layer over watched weights.
#[derive(Clone)]
struct Layer {
    norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Layer {
    fn new(device: Device, key: u64) -> Self {
        let weight = |shape, key| Operand::weight(shape, key).times(0.3).on(device);
        Self {
            norm: Operand::rows([1, 16], key).on(device),
            gate: weight([24, 16], key + 1),
            up: weight([24, 16], key + 2),
            down: weight([16, 24], key + 3),
        }
    }

    fn weights(&self) -> [&Tensor; 4] {
        [&self.norm, &self.gate, &self.up, &self.down]
    }

    fn forward(&self, tape: &mut Tape, x: &Tensor) -> Result<Tensor> {
        let normed = ops::rms_norm(tape, x, &self.norm, 1e-5)?;
        let maps = [&self.gate, &self.up].map(Projection::new);
        let gate_up = ops::project(tape, &normed, &maps, None)?;
        let inner = ops::swiglu(tape, &gate_up)?;
        let out = ops::linear(tape, &inner, &self.down, None)?;
        ops::add(tape, x, &out)
    }
}

/// Three layers; the middle one is used twice.
fn network(tape: &mut Tape, layers: &[Layer], x: &Tensor, checkpointing: bool) -> Result<Tensor> {
    let mut x = x.clone();
    for layer in [&layers[0], &layers[1], &layers[1], &layers[2]] {
        x = if checkpointing {
            let layer = layer.clone();
            tape.checkpoint(&x, move |tape, x| layer.forward(tape, x))?
        } else {
            layer.forward(tape, &x)?
        };
    }
    Ok(x)
}

fn gradients(device: Device, layers: &[Layer], x: &Tensor, checkpointing: bool) -> Gradients {
    let mut tape = Tape::recording();
    layers.iter().flat_map(Layer::weights).for_each(|w| tape.require_grad(w));
    let y = network(&mut tape, layers, x, checkpointing).expect("shapes fit");
    let seed = Tensor::new(device, random(y.rows() * y.cols(), 9), y.shape()).expect("shapes fit");
    tape.backward(&y, seed).expect("weights are watched")
}

fn layers(device: Device) -> [Layer; 3] {
    [100, 200, 300].map(|key| Layer::new(device, key))
}

#[test]
fn a_checkpoint_changes_no_bit_of_the_gradients() {
    for device in [Device::Cpu, Device::Reference] {
        let (layers, x) = (layers(device), Operand::rows([40, 16], 1).on(device));
        let [kept, again] = [false, true].map(|checkpointing| gradients(device, &layers, &x, checkpointing));
        for w in layers.iter().flat_map(Layer::weights) {
            let [kept, again] = [&kept, &again].map(|g| bits(g.get(w).expect("watched")));
            assert_eq!(kept, again);
        }
    }
}

#[test]
fn reruns_give_the_same_bits() {
    let (layers, x) = (layers(Device::Cpu), Operand::rows([300, 16], 1).on(Device::Cpu));
    let runs = [0; 5].map(|_| gradients(Device::Cpu, &layers, &x, false));
    for w in layers.iter().flat_map(Layer::weights) {
        let bits = runs.each_ref().map(|g| bits(g.get(w).expect("watched")));
        assert!(bits.iter().all(|b| *b == bits[0]));
    }
}

/// A segment may use values of the outer tape other than its input; their gradients must not be lost.
#[test]
fn a_checkpoint_passes_gradients_to_everything_it_uses() {
    let device = Device::Cpu;
    let x = Operand::rows([5, 16], 1).on(device);
    let w = Operand::weight([16, 16], 2).on(device);
    let run = |checkpointing: bool| {
        let mut tape = Tape::recording();
        tape.require_grad(&w);
        let side = ops::linear(&mut tape, &x, &w, None)?;
        let main = ops::add(&mut tape, &side, &x)?;
        let held = side.clone();
        let square = w.clone();
        let segment =
            move |tape: &mut Tape, x: &Tensor| ops::project(tape, x, &[Projection::new(&square)], Some(&held));
        let y = if checkpointing { tape.checkpoint(&main, segment)? } else { segment(&mut tape, &main)? };
        let seed = Tensor::new(device, random(80, 3), [5, 16])?;
        tape.backward(&y, seed)
    };
    let [kept, again] = [false, true].map(|c| run(c).expect("shapes fit"));
    let [kept, again] = [&kept, &again].map(|g| bits(g.get(&w).expect("watched")));
    assert_eq!(kept, again);
}

#[test]
fn a_value_used_in_many_places_gets_the_sum() {
    let device = Device::Cpu;
    let x = Operand::rows([3, 4], 1).on(device);
    let mut tape = Tape::recording();
    tape.require_grad(&x);
    // y = ((x + x) + x) + (x + x) = 5 x
    let two = ops::add(&mut tape, &x, &x).expect("equal shapes");
    let three = ops::add(&mut tape, &two, &x).expect("equal shapes");
    let five = ops::add(&mut tape, &three, &two).expect("equal shapes");
    let ones = Tensor::new(device, vec![1.0; 12], [3, 4]).expect("shapes fit");
    let grads = tape.backward(&five, ones).expect("watched");
    assert_eq!(grads.get(&x).expect("watched").to_vec(), [5.0; 12]);
}

#[test]
fn a_watched_value_in_the_middle_has_a_gradient_too() {
    let device = Device::Cpu;
    let x = Operand::rows([3, 4], 1).on(device);
    let mut tape = Tape::recording();
    tape.require_grad(&x);
    let y = ops::add(&mut tape, &x, &x).expect("equal shapes");
    tape.require_grad(&y);
    let z = ops::add(&mut tape, &y, &x).expect("equal shapes");
    let ones = Tensor::new(device, vec![1.0; 12], [3, 4]).expect("shapes fit");
    let grads = tape.backward(&z, ones).expect("watched");
    assert_eq!(grads.get(&y).expect("watched").to_vec(), [1.0; 12]);
    assert_eq!(grads.get(&x).expect("watched").to_vec(), [3.0; 12]);
}

#[test]
fn unwatched_and_unused_leaves_have_no_gradient() {
    let device = Device::Cpu;
    let [x, w, unused] = [1, 2, 3].map(|key| Operand::rows([3, 4], key).on(device));
    let mut tape = Tape::recording();
    tape.require_grad(&x);
    tape.require_grad(&unused);
    let y = ops::add(&mut tape, &x, &w).expect("equal shapes");
    let ones = Tensor::new(device, vec![1.0; 12], [3, 4]).expect("shapes fit");
    let grads = tape.backward(&y, ones).expect("watched");
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none() && grads.get(&unused).is_none());
}

#[test]
fn nothing_watched_is_nothing_recorded() {
    let device = Device::Cpu;
    let (layers, x) = (layers(device), Operand::rows([4, 16], 1).on(device));
    for mut tape in [Tape::recording(), Tape::off()] {
        let y = network(&mut tape, &layers, &x, true).expect("shapes fit");
        let y = network(&mut tape, &layers, &y, false).expect("shapes fit");
        assert!(!tape.tracks(&y));
        let seed = y.zeros_like().expect("memory");
        assert!(matches!(tape.backward(&y, seed), Err(Error::NotRecorded)));
    }
}

#[test]
fn a_seed_of_another_shape_is_refused() {
    let x = Operand::rows([3, 4], 1).on(Device::Cpu);
    let mut tape = Tape::recording();
    tape.require_grad(&x);
    let y = ops::add(&mut tape, &x, &x).expect("equal shapes");
    let error =
        tape.backward(&y, Tensor::zeros(Device::Cpu, [4, 3]).expect("memory")).err().expect("refused").to_string();
    assert!(error.contains("backward") && error.contains("[4, 3]"), "{error}");
}

#[test]
fn forward_with_and_without_a_tape_is_the_same() {
    let device = Device::Cpu;
    let (layers, x) = (layers(device), Operand::rows([37, 16], 1).on(device));
    let table = Arc::new(RopeTable::new(&[1.0, 0.1], 40, 1.0));
    let run = |mut tape: Tape| {
        layers.iter().flat_map(Layer::weights).for_each(|w| tape.require_grad(w));
        let y = network(&mut tape, &layers, &x, false).expect("shapes fit");
        let op = QkRope { table: table.clone(), positions: (0..37).collect(), heads: [2, 1], eps: 1e-5 };
        bits(&ops::qk_rope(&mut tape, op, &y, None).expect("positions fit"))
    };
    assert_eq!(run(Tape::recording()), run(Tape::off()));
}
