//! CRC-32C (Castagnoli) of a whole model file: with the processor's instruction where there is one, else by table.
#![allow(unsafe_code)]

#[cfg(feature = "fast-crc")]
static TABLE: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
#[cfg(not(feature = "fast-crc"))]
static TABLE: crc::Crc<u32, crc::Table<1>> = crc::Crc::<u32, crc::Table<1>>::new(&crc::CRC_32_ISCSI);

/// CRC-32C of some bytes (RFC 3720: reflected, initial value and final exclusive-or all ones).
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_extend(0, bytes)
}

/// CRC-32C of the bytes of which `crc` is the CRC (0 for none), followed by `bytes`.
pub fn crc32c_extend(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if super::cpu::features().crc32 {
        // SAFETY: the processor has SSE4.2.
        return unsafe { sse42(crc, bytes) };
    }
    #[cfg(all(target_arch = "aarch64", target_feature = "crc", not(miri)))]
    return aarch64(crc, bytes);
    #[allow(unreachable_code)]
    {
        // The crate wants the state as the polynomial has it, not reflected.
        let mut digest = TABLE.digest_with_initial((!crc).reverse_bits());
        digest.update(bytes);
        digest.finalize()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn sse42(crc: u32, bytes: &[u8]) -> u32 {
    use core::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let wide = words.iter().fold(u64::from(!crc), |crc, &word| _mm_crc32_u64(crc, u64::from_le_bytes(word)));
    !rest.iter().fold(wide as u32, |crc, &byte| _mm_crc32_u8(crc, byte))
}

#[cfg(all(target_arch = "aarch64", target_feature = "crc"))]
fn aarch64(crc: u32, bytes: &[u8]) -> u32 {
    use core::arch::aarch64::{__crc32cb, __crc32cd};
    let (words, rest) = bytes.as_chunks::<8>();
    // SAFETY: the target has the CRC instructions.
    unsafe {
        let wide = words.iter().fold(!crc, |crc, &word| __crc32cd(crc, u64::from_le_bytes(word)));
        !rest.iter().fold(wide, |crc, &byte| __crc32cb(crc, byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_value_and_the_table() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let bytes: [u8; 100] = core::array::from_fn(|i| (i * 37) as u8);
        for end in 0..bytes.len() {
            assert_eq!(crc32c(&bytes[..end]), TABLE.checksum(&bytes[..end]));
            assert_eq!(crc32c_extend(crc32c(&bytes[..end]), &bytes[end..]), TABLE.checksum(&bytes));
            let mut digest = TABLE.digest_with_initial((!crc32c(&bytes[..end])).reverse_bits());
            digest.update(&bytes[end..]);
            assert_eq!(digest.finalize(), TABLE.checksum(&bytes), "as without the instruction");
        }
    }
}
