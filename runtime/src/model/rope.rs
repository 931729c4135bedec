//! Rotary frequencies of a configuration.

use std::f64::consts::PI;

use autograd::ops::RopeTable;

use crate::config::{ModelConfig, RopeConfig, RopeScaling};

/// Cosines and sines of `positions` positions.
pub(super) fn table(config: &ModelConfig, positions: usize) -> RopeTable {
    let (inverse_frequencies, magnitude) = frequencies(&config.rope, config.head_dim);
    RopeTable::new(&inverse_frequencies, positions, magnitude)
}

/// One inverse frequency per pair of a head, and the factor on cosines and sines.
fn frequencies(rope: &RopeConfig, head_dim: usize) -> (Vec<f32>, f32) {
    let plain: Vec<f64> = (0..head_dim / 2).map(|i| rope.theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let rounded = |f: &dyn Fn(usize, f64) -> f64| plain.iter().enumerate().map(|(i, &w)| f(i, w) as f32).collect();
    match &rope.scaling {
        RopeScaling::None => (rounded(&|_, w| w), 1.0),
        RopeScaling::Linear { factor } => (rounded(&|_, w| w / factor), 1.0),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let context = original_max_position as f64;
            let scaled = |_, w: f64| {
                let wavelength = 2.0 * PI / w;
                if wavelength > context / low_freq_factor {
                    return w / factor;
                }
                if wavelength < context / high_freq_factor {
                    return w;
                }
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * w / factor + smooth * w
            };
            (rounded(&scaled), 1.0)
        }
        &RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, attention_factor } => {
            let magnitude =
                attention_factor.unwrap_or_else(|| if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 });
            let [low, high] =
                [beta_fast, beta_slow].map(|turns| correction(turns, rope.theta, head_dim, original_max_position));
            let (low, high) = (low.floor().max(0.0), high.ceil().min(head_dim as f64 - 1.0));
            let width = if low == high { 0.001 } else { high - low };
            let scaled = |i: usize, w: f64| {
                let interpolate = ((i as f64 - low) / width).clamp(0.0, 1.0);
                w / factor * interpolate + w * (1.0 - interpolate)
            };
            (rounded(&scaled), magnitude as f32)
        }
    }
}

/// The pair that turns `turns` times within the original context.
fn correction(turns: f64, theta: f64, head_dim: usize, context: usize) -> f64 {
    head_dim as f64 * (context as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
}
