//! The optimizer and the rotary table, against values worked out by hand.

use autograd::adamw::{AdamW, Moments, Step, global_norm};
use autograd::ops::{self, QkRope, RopeTable};
use autograd::{Device, Tape, Tensor};

use super::support::{Operand, assert_close};

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

fn scalar(device: Device, value: f32) -> Tensor {
    Tensor::new(device, vec![value], [1, 1]).expect("one value")
}

/// Two steps of one weight: w = 2, gradients 0.5 then -1, lr 0.1, decay 0.1.
///
/// Step 1: m = 0.05, v = 0.00025; both means corrected are 0.5 and 0.25, so w = 2 (1 - 0.01) - 0.1 = 1.88.
/// Step 2: m = -0.055, v = 0.00124975; m' = -0.055 / 0.19 = -0.289473684, v' = 0.00124975 / 0.001999 = 0.625187594,
/// root 0.790688052, so w = 1.88 * 0.99 + 0.1 * 0.289473684 / 0.790688052 = 1.897810332.
#[test]
fn two_steps_by_hand() {
    for device in [Device::Cpu, Device::Reference] {
        let mut w = scalar(device, 2.0);
        let mut moments = Moments::zeros(&w).expect("memory");
        for (number, grad, want) in [(1, 0.5, 1.88), (2, -1.0, 1.897810332)] {
            ADAMW
                .update(&mut w, &scalar(device, grad), &mut moments, Step { lr: 0.1, number, grad_scale: 1.0 })
                .expect("memory");
            let got = f64::from(w.to_vec()[0]);
            assert!((got - want).abs() < 2e-6, "{device}, step {number}: {got}, not {want}");
        }
        assert!((moments.m.to_vec()[0] + 0.055).abs() < 1e-7);
        assert!((moments.v.to_vec()[0] - 0.00124975).abs() < 1e-9);
    }
}

/// A panel weight of odd shape over ten steps, and its padding, stay equal to the reference device's.
#[test]
fn native_equals_reference() {
    let shape = [19, 23];
    let state = |device| {
        let w = Operand::weight(shape, 1).on(device);
        let moments = Moments::zeros(&w).expect("memory");
        (w, moments)
    };
    let [mut native, mut burn] = [Device::Cpu, Device::Reference].map(state);
    for number in 1..=10 {
        let step = Step { lr: 3e-3, number, grad_scale: 0.4 };
        for (device, (w, moments)) in [(Device::Cpu, &mut native), (Device::Reference, &mut burn)] {
            let grad = Operand::weight(shape, 10 + number).on(device);
            ADAMW.update(w, &grad, moments, step).expect("memory");
        }
    }
    assert_close("weight", &native.0.to_vec(), &burn.0.to_vec(), 1e-5);
    assert_close("m", &native.1.m.to_vec(), &burn.1.m.to_vec(), 1e-5);
    assert_close("v", &native.1.v.to_vec(), &burn.1.v.to_vec(), 1e-5);
}

#[test]
fn holders_of_the_old_weight_keep_it() {
    let mut w = Operand::weight([5, 7], 1).on(Device::Cpu);
    let (old, before) = (w.clone(), w.to_vec());
    let grad = Operand::weight([5, 7], 2).on(Device::Cpu);
    let mut moments = Moments::zeros(&w).expect("memory");
    ADAMW.update(&mut w, &grad, &mut moments, Step { lr: 0.1, number: 1, grad_scale: 1.0 }).expect("memory");
    assert_eq!(old.to_vec(), before);
    assert_ne!(w.to_vec(), before);
    assert_ne!(w.id(), old.id());
}

#[test]
fn the_norm_is_the_same_everywhere() {
    let operand = Operand::weight([33, 1000], 3);
    let exact = (2.0 * operand.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()).sqrt();
    for device in [Device::Cpu, Device::Reference] {
        let tensor = operand.on(device);
        let sum = global_norm(&[&tensor, &tensor]).expect("memory");
        assert!((sum - exact).abs() < 1e-9 * exact, "{device}: {sum}, not {exact}");
    }
}

/// Frequencies 1 and 0.01 at position 3, magnitude 2: angles 3 and 0.03.
#[test]
fn rope_table_by_hand() {
    let table = RopeTable::new(&[1.0, 0.01], 5, 2.0).into();
    assert_eq!(std::sync::Arc::<RopeTable>::clone(&table).positions(), 5);
    for device in [Device::Cpu, Device::Reference] {
        let x = Tensor::new(device, vec![1.0, 2.0, 3.0, 4.0], [1, 4]).expect("four values");
        let op = QkRope { table: std::sync::Arc::clone(&table), positions: [3].into(), heads: [1, 0], eps: 1e-5 };
        let y = ops::qk_rope(&mut Tape::off(), op, &x, None).expect("position 3 is there").to_vec();
        let turn = |a: f64, b: f64, angle: f64| {
            [2.0 * (a * angle.cos() - b * angle.sin()), 2.0 * (b * angle.cos() + a * angle.sin())]
        };
        let ([a, c], [b, d]) = (turn(1.0, 3.0, 3.0), turn(2.0, 4.0, 0.03));
        assert_close("rope", &y, &[a, b, c, d].map(|v| v as f32), 1e-6);
    }
}
