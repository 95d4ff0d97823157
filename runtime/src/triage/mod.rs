//! Embeddings in, a choice of what goes down out.
//!
//! | step | module |
//! | --- | --- |
//! | pixels of a tile: no data, saturation, a verdict before the encoder runs | [`quality`] |
//! | class of interest: cosine to prototypes, as a margin and a probability | [`prototypes`] |
//! | novelty: distance to the nearest embeddings of a bank | [`novelty`] |
//! | smaller forms of an embedding: binary code, int8 | [`codes`] |
//! | those that were fitted to the model and lie in its file, principal components among them | [`products`] |
//! | what each tile is worth, which rung it gets under a byte budget, and why | [`select`] |
//! | what is sent about a tile | [`record`] |
//! | how it is framed, in a file and on a wire | [`frame`] |
//!
//! Everything works in the caller's memory and takes the same decisions on every processor: f32 operations are done in a
//! fixed order, functions such as the logistic come from `libm`.

pub mod codes;
pub mod frame;
pub mod novelty;
pub mod products;
mod prototype_writer;
pub mod prototypes;
pub mod quality;
pub mod record;
pub mod select;

#[cfg(test)]
pub(crate) mod test_random {
    //! Reproducible numbers for the tests of this folder.
    extern crate std;

    /// Marsaglia's xorshift64; the seed is not 0.
    pub struct Random(pub u64);

    impl Random {
        /// 64 bits.
        pub fn bits(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// 0 to `n` - 1.
        pub fn below(&mut self, n: u64) -> u64 {
            (self.bits() >> 11) % n
        }

        /// In [0, 1).
        pub fn unit(&mut self) -> f32 {
            (self.bits() >> 40) as f32 / (1u64 << 24) as f32
        }

        /// In [-1, 1).
        pub fn signed(&mut self) -> f32 {
            2.0 * self.unit() - 1.0
        }

        /// Mean 0, variance 1, by the Box-Muller transform.
        pub fn normal(&mut self) -> f32 {
            (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f32::consts::TAU * self.unit()).cos()
        }
    }
}
