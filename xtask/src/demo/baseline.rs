//! What the choice is compared with: keeping the first tiles, and keeping any tiles.

/// How many tiles a way of choosing keeps in full.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kept {
    /// Tiles kept.
    pub tiles: usize,
    /// Wanted ones among them.
    pub wanted: usize,
    /// Wanted tiles in the stream.
    pub all_wanted: usize,
}

impl Kept {
    /// Counts; both slices have one entry a tile.
    pub fn of(kept: &[bool], wanted: &[bool]) -> Self {
        Self {
            tiles: kept.iter().filter(|kept| **kept).count(),
            wanted: kept.iter().zip(wanted).filter(|(kept, wanted)| **kept && **wanted).count(),
            all_wanted: wanted.iter().filter(|wanted| **wanted).count(),
        }
    }

    /// Share of the wanted tiles that is kept, 0 to 1.
    pub fn share(&self) -> f64 {
        self.wanted as f64 / self.all_wanted.max(1) as f64
    }
}

/// The first `whole` tiles in capture order. Frames and records cost it nothing: the comparison favours it.
pub fn first_in_first_out(wanted: &[bool], whole: usize) -> Kept {
    let kept: Vec<bool> = (0..wanted.len()).map(|tile| tile < whole).collect();
    Kept::of(&kept, wanted)
}

/// Mean number of wanted tiles among `whole` tiles drawn without replacement, over `draws` draws.
pub fn random(wanted: &[bool], whole: usize, draws: usize, seed: u64) -> f64 {
    let mut state = seed;
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let whole = whole.min(order.len());
    let mut sum = 0;
    for _ in 0..draws {
        // The first steps of a Fisher-Yates shuffle; the order before it does not matter.
        for i in 0..whole {
            let rest = (order.len() - i) as u64;
            order.swap(i, i + (split_mix(&mut state) % rest) as usize);
        }
        sum += order[..whole].iter().filter(|tile| wanted[**tile]).count();
    }
    sum as f64 / draws.max(1) as f64
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_keeps_the_first() {
        let wanted = [true, false, true, true];
        assert_eq!(first_in_first_out(&wanted, 3), Kept { tiles: 3, wanted: 2, all_wanted: 3 });
        assert_eq!(first_in_first_out(&wanted, 9).share(), 1.0);
        assert_eq!(first_in_first_out(&[], 3).share(), 0.0);
    }

    #[test]
    fn random_keeps_its_share() {
        // Hypergeometric: mean 30 * 20 / 200 = 3, variance 3 * 0.9 * 170 / 199 = 2.31; over 1000 draws the mean
        // strays by 0.048, and five times that is allowed.
        let wanted: Vec<bool> = (0..200).map(|tile| tile % 10 == 0).collect();
        let mean = random(&wanted, 30, 1000, 1);
        assert!((mean - 3.0).abs() < 0.24, "{mean}");
        assert_eq!(mean, random(&wanted, 30, 1000, 1));
        assert_eq!(random(&wanted, 200, 10, 1), 20.0);
        assert_eq!(random(&wanted, 0, 10, 1), 0.0);
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // First value for seed 1234567 in the reference implementation's published test.
        assert_eq!(split_mix(&mut 1_234_567), 6_457_827_717_110_365_317);
    }
}
