//! Checks that run beside the encoder: repair, scrub, self-test, signature.
//!
//! | file | what | when |
//! | --- | --- | --- |
//! | `repair.rs` | [`repair()`], [`Repair`]: flipped bits of a file with parity are set right, in place | before a model is parsed, and whenever its memory may be written |
//! | `scrub.rs` | [`Scrub`]: the memory of a parsed model is looked at again, 4096 bytes a step; [`Survey`]: where a damaged file is damaged | between tiles |
//! | `self_test.rs` | [`SelfTest`]: tiles made from a seed, and the hash of their embeddings | at start, after an upload |
//! | `signature.rs` | `verify_signature`: who made the file, and that it is not older than the one before | before a model becomes active; with the feature `signature` |

mod repair;
mod scrub;
mod self_test;
#[cfg(feature = "signature")]
mod signature;

pub use repair::{Bit, Repair, RepairError, Repaired, repair};
pub use scrub::{Damage, Scrub, Survey};
pub use self_test::{SelfTest, SelfTestError, TileKind};
#[cfg(feature = "signature")]
pub(crate) use signature::verify_seal;
#[cfg(feature = "signature")]
pub use signature::{
    DOMAIN, KeyId, MESSAGE_BYTES, SignatureError, key_id, signed_key, signed_message, verify_signature,
};

/// Whether a check that goes step by step is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to look at.
    More,
    /// Everything was looked at once; the next step begins anew.
    Done,
}
