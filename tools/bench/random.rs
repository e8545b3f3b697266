//! Random choices that a seed repeats.

/// Splitmix64: good enough for choosing objects, and one multiplication or two.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub(crate) const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Below `count`, which is not zero.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// In `0.0..1.0`.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How objects are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    /// Each as often as any other.
    Uniform,
    /// The n-th most popular in proportion to 1 / n^theta, `0 < theta < 1`.
    Zipf(f64),
}

/// Chooses numbers below a count.
#[derive(Clone, Debug)]
pub(crate) enum Chooser {
    /// See [`Distribution::Uniform`].
    Uniform { count: usize },
    /// See [`Distribution::Zipf`].
    Zipf(Zipf),
}

impl Chooser {
    /// Of `count` numbers, which is not zero.
    pub(crate) fn new(distribution: Distribution, count: usize) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform { count },
            Distribution::Zipf(theta) => Self::Zipf(Zipf::new(theta, count)),
        }
    }

    pub(crate) fn choose(&self, random: &mut Random) -> usize {
        match self {
            Self::Uniform { count } => random.below(*count),
            Self::Zipf(zipf) => zipf.choose(random.fraction()),
        }
    }
}

/// The generator of J. Gray et al., "Quickly generating billion-record synthetic databases"
/// (SIGMOD 1994), section 4.3, with the popular numbers scattered over all.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    count: usize,
    alpha: f64,
    eta: f64,
    zeta: f64,
    second: f64,
}

impl Zipf {
    /// A prime above any count of objects here, so that multiplying by it permutes them.
    const SCATTER: u128 = 1_000_000_000_039;

    fn new(theta: f64, count: usize) -> Self {
        let zeta: f64 = (1..=count).map(|n| (n as f64).powf(-theta)).sum();
        let second = 0.5_f64.powf(theta);
        let few = (2.0 / count as f64).powf(1.0 - theta);
        Self {
            count,
            alpha: 1.0 / (1.0 - theta),
            eta: (1.0 - few) / (1.0 - (1.0 + second) / zeta),
            zeta,
            second,
        }
    }

    fn choose(&self, fraction: f64) -> usize {
        let scattered = self.rank(fraction) as u128 * Self::SCATTER % self.count as u128;
        scattered as usize
    }

    fn rank(&self, fraction: f64) -> usize {
        let scaled = fraction * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + self.second {
            return 1.min(self.count - 1);
        }
        let share = (self.eta * fraction - self.eta + 1.0).powf(self.alpha);
        ((self.count as f64 * share) as usize).min(self.count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_range_and_repeated_by_the_seed() {
        for distribution in [Distribution::Uniform, Distribution::Zipf(0.99)] {
            for count in [1, 2, 3, 1000] {
                let chooser = Chooser::new(distribution, count);
                let draw = || -> Vec<usize> {
                    let mut random = Random::new(5);
                    (0..1000).map(|_| chooser.choose(&mut random)).collect()
                };
                assert!(draw().iter().all(|n| *n < count));
                assert_eq!(draw(), draw());
            }
        }
    }

    #[test]
    fn a_few_objects_are_popular_with_zipf_and_none_otherwise() {
        let share_of_ten = |distribution| {
            let chooser = Chooser::new(distribution, 10_000);
            let mut random = Random::new(1);
            let mut counts = vec![0; 10_000];
            for _ in 0..100_000 {
                counts[chooser.choose(&mut random)] += 1;
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts[..10].iter().sum::<i32>()
        };
        // 1 / n^0.99 of the first ten of ten thousand is 30 %.
        assert!((27_000..33_000).contains(&share_of_ten(Distribution::Zipf(0.99))));
        assert!(share_of_ten(Distribution::Uniform) < 500);
    }
}
