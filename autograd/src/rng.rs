//! Keyed random numbers: a value is a function of its key, never of how many were drawn before.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
#[must_use]
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let mut k = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Words of [`philox_block`].
pub(crate) const PHILOX_BLOCK: usize = 64;

/// The words of sixteen counters, `16 * block ..`, computed side by side: `[word][counter]`.
#[inline(always)]
pub(crate) fn philox_block(key: u64, block: u64) -> [[u32; 16]; 4] {
    let mut k = [key as u32, (key >> 32) as u32];
    let mut c = [[0u32; 16]; 4];
    for (index, lane) in (block * 16..).zip(0..16) {
        (c[0][lane], c[1][lane]) = (index as u32, (index >> 32) as u32);
    }
    for _ in 0..10 {
        for lane in 0..c[0].len() {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0][lane]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2][lane]);
            let (x, y) = (c[1][lane] ^ k[0], c[3][lane] ^ k[1]);
            c[0][lane] = (p1 >> 32) as u32 ^ x;
            c[1][lane] = p1 as u32;
            c[2][lane] = (p0 >> 32) as u32 ^ y;
            c[3][lane] = p0 as u32;
        }
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// The uniform number in `[0, 1)` that belongs to (`key`, `stream`, `index`).
#[must_use]
pub fn uniform(key: u64, stream: u64, index: u64) -> f64 {
    let c = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
    let r = philox(key, c);
    let bits = (u64::from(r[0]) << 32 | u64::from(r[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(0x299f_31d0_a409_3822, pi), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_block_holds_the_words_of_its_counters() {
        let block = philox_block(99, (1 << 30) + 5);
        for (index, lane) in (16 * ((1u64 << 30) + 5)..).zip(0..16) {
            let words = philox(99, [index as u32, (index >> 32) as u32, 0, 0]);
            assert_eq!(words, [0, 1, 2, 3].map(|word| block[word][lane]));
        }
    }

    #[test]
    fn uniform_is_in_range_and_keyed() {
        let draws: Vec<f64> = (0..1000).map(|i| uniform(7, 3, i)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "mean {mean}");
        assert_ne!(uniform(7, 3, 0), uniform(8, 3, 0));
        assert_ne!(uniform(7, 3, 0), uniform(7, 4, 0));
    }
}
