//! Walks the op table: native against burn, and native against finite differences.

use autograd::ops::{self, Rows};
use autograd::{Device, Gradients, Tape, Tensor};

use super::support::{Operand, assert_close, dot, random};
use super::table::{Case, table};

/// What one run gives: the output, the rows' values, a gradient per operand.
pub(crate) struct Ran {
    pub(crate) output: Vec<f32>,
    pub(crate) rows: Rows,
    pub(crate) grads: Vec<Option<Vec<f32>>>,
}

/// Gradients of `sum(output * seed)`; with `twice`, of the sum of two calls on the same tape.
pub(crate) fn run(case: &Case, device: Device, twice: bool) -> Ran {
    let tensors: Vec<Tensor> = case.operands.iter().map(|o| o.on(device)).collect();
    let inputs: Vec<&Tensor> = case.slots.iter().map(|&s| &tensors[s]).collect();
    let mut tape = if case.differentiable { Tape::recording() } else { Tape::off() };
    tensors.iter().for_each(|t| tape.require_grad(t));
    let call = |tape: &mut Tape| (case.run)(tape, &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let (mut output, rows) = call(&mut tape);
    if twice {
        let (again, _) = call(&mut tape);
        output = ops::add(&mut tape, &output, &again).expect("equal shapes");
    }
    let grads = if case.differentiable {
        let values = seed(&output);
        let mut seed = output.copied().expect("memory");
        seed.set(values).expect("the seed fills the shape");
        tape.backward(&output, seed).unwrap_or_else(|e| panic!("{}: {e}", case.name))
    } else {
        Gradients::default()
    };
    let grads = tensors.iter().map(|t| grads.get(t).map(Tensor::to_vec)).collect();
    Ran { output: output.to_vec(), rows, grads }
}

/// The weights of the output's values in the sum that is differentiated.
fn seed(output: &Tensor) -> Vec<f32> {
    random(output.rows() * output.cols(), 99).iter().map(|v| v + 0.3).collect()
}

/// Operands that some input other than a constant uses.
pub(crate) fn variables(case: &Case) -> Vec<bool> {
    let uses = |operand| {
        let mut slots = case.slots.iter().enumerate();
        case.differentiable && slots.any(|(input, &s)| s == operand && !case.constants.contains(&input))
    };
    (0..case.operands.len()).map(uses).collect()
}

#[test]
fn native_equals_burn() {
    for case in table() {
        let [native, burn] = [Device::Cpu, Device::Reference].map(|device| run(&case, device, false));
        let name = &case.name;
        assert_close(&format!("{name}: output"), &native.output, &burn.output, 1e-5);
        assert_eq!(native.rows.keys().collect::<Vec<_>>(), burn.rows.keys().collect::<Vec<_>>(), "{name}");
        for (key, values) in &native.rows {
            assert_close(&format!("{name}: {key}"), values, &burn.rows[key], 1e-5);
        }
        for (i, variable) in variables(&case).into_iter().enumerate() {
            match (&native.grads[i], &burn.grads[i]) {
                (Some(n), Some(b)) if variable => {
                    assert!(
                        b.iter().any(|&g| g != 0.0),
                        "{name}: the gradient of operand {i} is zero, it tests nothing"
                    );
                    assert_close(&format!("{name}: gradient of operand {i}"), n, b, 1e-4);
                }
                (None, None) if !variable => {}
                (n, b) => panic!("{name}: gradient of operand {i}: native {}, burn {}", n.is_some(), b.is_some()),
            }
        }
    }
}

#[test]
fn two_calls_on_one_tape_give_twice_the_gradient() {
    for case in table().iter().filter(|c| c.differentiable) {
        let [once, twice] = [false, true].map(|twice| run(case, Device::Cpu, twice));
        for (i, (once, twice)) in once.grads.iter().zip(&twice.grads).enumerate() {
            let doubled = once.as_ref().map(|g| g.iter().map(|v| 2.0 * v).collect::<Vec<_>>());
            match (doubled, twice) {
                (None, None) => {}
                (Some(want), Some(got)) => assert_close(&format!("{}: operand {i}", case.name), got, &want, 1e-6),
                _ => panic!("{}: operand {i} has a gradient in one run only", case.name),
            }
        }
    }
}

/// `sum(output * seed)` with the operands' values; inputs that the op treats as constants keep the case's own.
fn value(case: &Case, operands: &[Operand]) -> f64 {
    let moved: Vec<Tensor> = operands.iter().map(|o| o.on(Device::Cpu)).collect();
    let fixed: Vec<Tensor> = case.operands.iter().map(|o| o.on(Device::Cpu)).collect();
    let input = |(i, &s): (usize, &usize)| if case.constants.contains(&i) { &fixed[s] } else { &moved[s] };
    let inputs: Vec<&Tensor> = case.slots.iter().enumerate().map(input).collect();
    let (output, _) = (case.run)(&mut Tape::off(), &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    dot(&output.to_vec(), &seed(&output))
}

#[test]
fn native_gradients_agree_with_finite_differences() {
    for case in table() {
        let Some(step) = case.step else { continue };
        let grads = run(&case, Device::Cpu, false).grads;
        for (i, grad) in grads.iter().enumerate() {
            let Some(grad) = grad else { continue };
            for trial in 0..2 {
                let direction = random(grad.len(), 40 + trial);
                let at = |steps: f32| {
                    let mut operands = case.operands.clone();
                    for (v, d) in operands[i].values.iter_mut().zip(&direction) {
                        *v += steps * step * d;
                    }
                    value(&case, &operands)
                };
                let difference = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(step));
                let slope = dot(grad, &direction);
                let size = grad.iter().zip(&direction).map(|(g, d)| f64::from(g * d).powi(2)).sum::<f64>().sqrt();
                let error = (difference - slope).abs();
                // The values are f32: a fourth-order difference is limited by their rounding.
                assert!(
                    error <= 2e-3 * size + 1e-6 / f64::from(step),
                    "{}: operand {i} along direction {trial}: {difference} against {slope} (size {size})",
                    case.name
                );
            }
        }
    }
}
