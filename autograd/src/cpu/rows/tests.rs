use super::*;

#[test]
fn exp_is_accurate_over_its_range() {
    let z: Vec<f32> = (0..4000).map(|i| -87.0 + 0.0437 * i as f32).collect();
    let mut out = z.clone();
    entropy_and_exp(&mut out, 0.0);
    for (z, e) in z.iter().zip(&out) {
        let exact = f64::from(*z).exp();
        assert!((f64::from(*e) - exact).abs() <= 2e-7 * exact, "exp({z}) = {e}, not {exact}");
    }
}

#[test]
fn exp_of_the_extremes() {
    let z = [f32::NEG_INFINITY, -1000.0, -88.0, 0.0, f32::NAN];
    let mut out = z;
    entropy_and_exp(&mut out, 0.0);
    assert_eq!(out[..4], [0.0, 0.0, 0.0, 1.0]);
    assert!(out[4].is_nan());
}

#[test]
fn normalizer_survives_large_logits_and_shows_nan() {
    let n = normalizer(&[1000.0, 1000.0, -1000.0]);
    assert!((n.log_sum - 1000.0 - 2f32.ln()).abs() < 1e-4);
    let mut z = vec![0.5; 100];
    z[37] = f32::NAN;
    assert!(normalizer(&z).log_sum.is_nan());
}
