#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| nadir_fuzz::flipped_bits(data));
