//! Python's `random.Random`, bit for bit: few-shot examples and bootstrap resamples are then lm-evaluation-harness'.

const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister MT19937 as CPython seeds and uses it.
#[derive(Debug, Clone)]
pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        let key = if words[1] == 0 { &words[..1] } else { &words[..] };
        Self::from_key(key)
    }

    /// MT19937's initialization by an array.
    fn from_key(key: &[u32]) -> Self {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let mut place = |state: &mut [u32; N], factor: u32, add: &dyn Fn(usize) -> u32| {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ before.wrapping_mul(factor)).wrapping_add(add(i));
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        };
        for j in 0..N.max(key.len()) {
            let j = j % key.len();
            place(&mut state, 1_664_525, &|_| key[j].wrapping_add(j as u32));
        }
        for _ in 1..N {
            place(&mut state, 1_566_083_941, &|i| (i as u32).wrapping_neg());
        }
        state[0] = 1 << 31;
        Self { state, next: N }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// `random()`: at least 0, below 1.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(n)`, for n from 1 to 2^32 - 1.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        debug_assert!((1..=32).contains(&bits), "0 < n < 2^32");
        loop {
            let draw = (self.word() >> (32 - bits)) as usize;
            if draw < n {
                return draw;
            }
        }
    }

    /// Indices of `sample(population, k)` for a population of `n`; `k` is at most `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "{k} of {n} cannot be drawn");
        let set_size = 21 + if k > 5 { 4usize.pow(((3 * k) as f64).log(4.0).ceil() as u32) } else { 0 };
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let drawn = pool[j];
                    pool[j] = pool[n - i - 1];
                    drawn
                })
                .collect();
        }
        let mut drawn = Vec::with_capacity(k);
        let mut seen = std::collections::HashSet::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if seen.insert(j) {
                drawn.push(j);
            }
        }
        drawn
    }

    /// Indices of `choices(population, k=k)` for a population of `n`, one after another.
    pub fn choices(&mut self, n: usize, k: usize) -> impl Iterator<Item = usize> + '_ {
        (0..k).map(move |_| (self.random() * n as f64).floor() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that CPython 3.12 printed.
    #[test]
    fn draws_are_pythons() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(7473, 5), [6374, 3610, 957, 61, 742]);
        assert_eq!(random.sample(7473, 5), [7462, 6610, 4769, 286, 5501]);
        assert_eq!(random.sample(20, 8), [2, 3, 11, 7, 0, 15, 12, 14]);
        assert_eq!(random.random(), 0.346_088_965_597_123_1);
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(100, 7), [99, 56, 14, 0, 11, 74, 4]);
        assert_eq!(random.sample(100, 3), [85, 88, 10]);
        let mut random = PythonRandom::new((1 << 40) + 7);
        assert_eq!(random.random(), 0.613_703_777_993_651_1);
        assert_eq!(random.choices(10, 6).collect::<Vec<_>>(), [8, 9, 5, 4, 9, 1]);
        assert_eq!(PythonRandom::new(0).random(), 0.844_421_851_525_048_1);
    }
}
