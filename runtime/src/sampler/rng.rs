//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011).

/// Names one random draw. There is no stream and no state: the same key gives the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RngKey {
    /// The user's seed.
    pub seed: u64,
    /// Which of the requests under that seed.
    pub request: u64,
    /// Position of the token that is drawn.
    pub position: u64,
}

impl RngKey {
    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(self) -> f64 {
        let [a, b, ..] = philox4x32_10(
            [low(self.position), high(self.position), low(self.request), high(self.request)],
            [low(self.seed), high(self.seed)],
        );
        let bits = (u64::from(a) << 21) | (u64::from(b) >> 11);
        bits as f64 / (1u64 << 53) as f64
    }
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

/// Ten rounds of Philox over four 32-bit words.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(counter[0]) * 0xd251_1f53;
        let p1 = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [high(p1) ^ counter[1] ^ key[0], low(p1), high(p0) ^ counter[3] ^ key[1], low(p0)];
        key[0] = key[0].wrapping_add(0x9e37_79b9);
        key[1] = key[1].wrapping_add(0xbb67_ae85);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        let zeros = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn draws_are_uniform_along_every_part_of_the_key() {
        let make: [fn(u64) -> RngKey; 3] = [
            |i| RngKey { seed: i, request: 0, position: 0 },
            |i| RngKey { seed: 0, request: i, position: 0 },
            |i| RngKey { seed: 0, request: 0, position: i },
        ];
        for key in make {
            let mut counts = [0f64; 16];
            (0..16_000).for_each(|i| counts[(key(i).uniform() * 16.0) as usize] += 1.0);
            let chi_square: f64 = counts.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
            // 15 degrees of freedom: 37.7 is exceeded once in 1000 times.
            assert!(chi_square < 37.7, "{chi_square}");
        }
    }
}
