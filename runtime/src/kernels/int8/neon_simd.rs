//! The vector instructions of ARMv8.0 as safe functions that are always inlined.
//!
//! The intrinsics of `core` are unsafe to call from functions without `#[target_feature]`, even in a build that has the feature; and a
//! function that has the attribute cannot be `#[inline(always)]`, which the inner loops need: what is generic over the set must end up in
//! one function with the set's own features. This module, like all that use it, exists only where the build has the feature. Loads and
//! stores are unsafe because of their pointers, and are those of `core`.
#![allow(unsafe_code)]

pub use core::arch::aarch64::{
    int8x8_t, int8x16_t, int16x4_t, int16x8_t, int32x2_t, int32x4_t, int64x2_t, uint8x16_t, uint32x4_t, uint64x2_t,
    vld1_s8, vld1_s16, vld1q_s8, vld1q_s16, vld1q_s32, vld1q_u8, vld1q_u32, vld4_s8, vst1_s8, vst1q_s8, vst1q_s16,
    vst1q_u32,
};

macro_rules! safe {
    ($($name:ident $([$const:ident])? ($($type:ty),*) -> $result:ty;)*) => {
        $(safe!(@ $name $([$const])? ($($type),*) (a b c d) () -> $result);)*
    };
    // Gives each argument a name.
    (@ $name:ident $([$const:ident])? ($type:ty $(, $types:ty)*) ($a:ident $($names:ident)*) ($($done:tt)*) -> $result:ty) => {
        safe!(@ $name $([$const])? ($($types),*) ($($names)*) ($($done)* [$a $type]) -> $result);
    };
    (@ $name:ident $([$const:ident])? () ($($names:ident)*) ($([$a:ident $type:ty])*) -> $result:ty) => {
        #[inline(always)]
        pub fn $name$(<const $const: i32>)?($($a: $type),*) -> $result {
            // SAFETY: the build has the feature; the instruction works on registers alone.
            unsafe { core::arch::aarch64::$name$(::<$const>)?($($a),*) }
        }
    };
}

safe! {
    vaddq_s32(int32x4_t, int32x4_t) -> int32x4_t;
    vaddq_u32(uint32x4_t, uint32x4_t) -> uint32x4_t;
    vaddvq_s32(int32x4_t) -> i32;
    vaddvq_u64(uint64x2_t) -> u64;
    vandq_u32(uint32x4_t, uint32x4_t) -> uint32x4_t;
    vcgeq_u32(uint32x4_t, uint32x4_t) -> uint32x4_t;
    vcombine_s8(int8x8_t, int8x8_t) -> int8x16_t;
    vdup_n_s32(i32) -> int32x2_t;
    vdup_n_s8(i8) -> int8x8_t;
    vdupq_n_s16(i16) -> int16x8_t;
    vdupq_n_s32(i32) -> int32x4_t;
    vdupq_n_s8(i8) -> int8x16_t;
    vdupq_n_u32(u32) -> uint32x4_t;
    vdupq_n_u64(u64) -> uint64x2_t;
    vget_low_s16(int16x8_t) -> int16x4_t;
    vmaxq_s16(int16x8_t, int16x8_t) -> int16x8_t;
    vminq_s16(int16x8_t, int16x8_t) -> int16x8_t;
    vminq_s8(int8x16_t, int8x16_t) -> int8x16_t;
    vminvq_s8(int8x16_t) -> i8;
    vmlal_high_lane_s16[LANE](int32x4_t, int16x8_t, int16x4_t) -> int32x4_t;
    vmlal_high_s16(int32x4_t, int16x8_t, int16x8_t) -> int32x4_t;
    vmlal_lane_s16[LANE](int32x4_t, int16x4_t, int16x4_t) -> int32x4_t;
    vmlal_s16(int32x4_t, int16x4_t, int16x4_t) -> int32x4_t;
    vmlaq_s32(int32x4_t, int32x4_t, int32x4_t) -> int32x4_t;
    vmovl_high_s16(int16x8_t) -> int32x4_t;
    vmovl_s16(int16x4_t) -> int32x4_t;
    vmovl_s8(int8x8_t) -> int16x8_t;
    vmull_s16(int16x4_t, int16x4_t) -> int32x4_t;
    vmull_s8(int8x8_t, int8x8_t) -> int16x8_t;
    vpadalq_s16(int32x4_t, int16x8_t) -> int32x4_t;
    vpadalq_u32(uint64x2_t, uint32x4_t) -> uint64x2_t;
    vpaddq_s32(int32x4_t, int32x4_t) -> int32x4_t;
    vqaddq_s16(int16x8_t, int16x8_t) -> int16x8_t;
    vqmovn_high_s32(int16x4_t, int32x4_t) -> int16x8_t;
    vqmovn_s16(int16x8_t) -> int8x8_t;
    vqmovn_s32(int32x4_t) -> int16x4_t;
    vqrdmulhq_s16(int16x8_t, int16x8_t) -> int16x8_t;
    vreinterpret_s8_s32(int32x2_t) -> int8x8_t;
    vreinterpretq_s16_u8(uint8x16_t) -> int16x8_t;
    vreinterpretq_s32_s64(int64x2_t) -> int32x4_t;
    vreinterpretq_s32_s8(int8x16_t) -> int32x4_t;
    vreinterpretq_s64_s32(int32x4_t) -> int64x2_t;
    vreinterpretq_s64_s8(int8x16_t) -> int64x2_t;
    vreinterpretq_s8_s32(int32x4_t) -> int8x16_t;
    vreinterpretq_s8_s64(int64x2_t) -> int8x16_t;
    vreinterpretq_u32_s32(int32x4_t) -> uint32x4_t;
    vshlq_s32(int32x4_t, int32x4_t) -> int32x4_t;
    vshrq_n_u32[BITS](uint32x4_t) -> uint32x4_t;
    vsubq_u32(uint32x4_t, uint32x4_t) -> uint32x4_t;
    vzip1q_s32(int32x4_t, int32x4_t) -> int32x4_t;
    vzip1q_s64(int64x2_t, int64x2_t) -> int64x2_t;
    vzip1q_u8(uint8x16_t, uint8x16_t) -> uint8x16_t;
    vzip2q_s32(int32x4_t, int32x4_t) -> int32x4_t;
    vzip2q_s64(int64x2_t, int64x2_t) -> int64x2_t;
    vzip2q_u8(uint8x16_t, uint8x16_t) -> uint8x16_t;
}
