//! A small generator of pseudo-random numbers.

/// SplitMix64 (Steele, Lea, Flood 2014): eight bytes of state, every seed is good. Spreads delays; keeps no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in −1 ≤ x ≤ 1.
    pub(crate) fn next_signed_unit(&mut self) -> f64 {
        // 53 bits are what the number holds exactly.
        const STEPS: f64 = ((1_u64 << 53) - 1) as f64;
        (self.next_u64() >> 11) as f64 / STEPS * 2.0 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_sequence() {
        // Seeds differ between hubs and versions only if somebody means them to.
        let mut rng = SplitMix64::new(1_234_567);
        let first: Vec<_> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_unit_is_spread_evenly() {
        let mut rng = SplitMix64::new(1);
        let values: Vec<_> = (0..10_000).map(|_| rng.next_signed_unit()).collect();
        assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
        let mean = values.iter().sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!(values.iter().any(|&v| v < -0.99) && values.iter().any(|&v| v > 0.99));
    }
}
