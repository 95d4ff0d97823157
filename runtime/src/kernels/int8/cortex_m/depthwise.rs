//! The 7x7 depthwise convolution with SMLAD: one channel, four neighbouring outputs at a time.
//!
//! **Layout.** A pair of neighbouring pixels of one channel is a word only if channels are apart. So the rows that a strip needs are copied
//! for two channels (one load brings both), with zeros where the map ends, into planes of [`PITCH`] values a row on the stack. The 49 weights of
//! a channel become eight words a kernel row: pairs (w0 w1) (w2 w3) (w4 w5) (w6 0) for outputs of even columns, and (0 w0) (w1 w2) (w3 w4)
//! (w5 w6) for odd ones, so that both read the same words of pixels.
//!
//! **Registers.** Four accumulators, five words of pixels, three of weights, two pointers: all 14.
//!
//! **Why this tile.** A kernel row of four outputs takes one LDM of pixels, three of weights, one addition and 16 SMLAD: 21
//! instructions for 28 multiply-adds, 0.75 each. The seven rows are written out; rows beyond the map are not computed, by entering
//! further down.
//!
//! **Measured.** See `cortex_m.rs`.
//!
//! **Stack.** 3.5 KiB.

use super::instructions::smlabb;
use super::instructions::ssat16;
use crate::kernels::int8::{Area, DEPTHWISE_SIDE, Depthwise, MAX_STRIP, Rows};
use core::arch::naked_asm;
use core::mem::MaybeUninit;

const HALF: usize = DEPTHWISE_SIDE / 2;
/// Outputs at a time.
const QUAD: usize = 4;
/// Values of a row of a plane: the longest strip and both margins, in whole words.
const PITCH: usize = (MAX_STRIP + 2 * HALF).next_multiple_of(QUAD);
/// The most rows of a map that a strip needs: 16 x 4 pixels need 10, 8 x 8 all 8 that there are.
const PLANE_ROWS: usize = 12;
/// Words of the weights of a kernel row.
const ROW_WORDS: usize = 8;
/// Bytes of code for a kernel row.
const ROW_CODE: usize = 21 * 4;

/// What a run over one row of outputs needs; the order is that of the registers that the assembly loads it into.
#[repr(C)]
struct Sweep {
    /// Sums of the outputs, whole quads.
    sums: *mut i32,
    /// End of these.
    end: *mut i32,
    /// First row that counts of the plane, at the column of the first output's first tap.
    plane: *const i16,
    /// Weights of the first kernel row that counts.
    weight: *const u32,
    /// Bytes of code to skip before the first row that counts.
    skip: usize,
    /// Where every sum begins.
    bias: i32,
}

/// # Safety
/// `sweep` points to ranges that exist, [`PITCH`] values from row to row of the plane; there is at least one quad.
#[unsafe(naked)]
unsafe extern "C" fn sweep_rows(sweep: *const Sweep) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, #28",
        // sums, end, plane, weight, skip, bias
        "ldm r0, {{r4-r9}}",
        "adr.w r10, 2f",
        "add r8, r8, r10",
        "orr r8, r8, #1",
        // On the stack: sums, end, plane, weight, entry, bias.
        "stm sp, {{r4-r9}}",
        "1:",
        "mov r12, r6",
        "mov lr, r7",
        "mov r0, r9",
        "mov r1, r9",
        "mov r2, r9",
        "mov r3, r9",
        "bx r8",
        // Alignment of the section too, on which ADR relies.
        ".p2align 2",
        "2:",
        ".rept 7",
        "ldm.w r12, {{r4-r8}}",
        "add.w r12, r12, #{pitch}",
        "ldm.w lr!, {{r9-r11}}",
        "smlad r0, r4, r9, r0",
        "smlad r2, r5, r9, r2",
        "smlad r0, r5, r10, r0",
        "smlad r2, r6, r10, r2",
        "smlad r0, r6, r11, r0",
        "smlad r2, r7, r11, r2",
        "ldm.w lr!, {{r9-r11}}",
        "smlad r0, r7, r9, r0",
        "smlad r2, r8, r9, r2",
        "smlad r1, r4, r10, r1",
        "smlad r3, r5, r10, r3",
        "smlad r1, r5, r11, r1",
        "smlad r3, r6, r11, r3",
        "ldrd r9, r10, [lr], #8",
        "smlad r1, r6, r9, r1",
        "smlad r3, r7, r9, r3",
        "smlad r1, r7, r10, r1",
        "smlad r3, r8, r10, r3",
        ".endr",
        "ldm sp, {{r4-r9}}",
        "stm r4!, {{r0-r3}}",
        "adds r6, #8",
        "str r4, [sp]",
        "str r6, [sp, #8]",
        "cmp r4, r5",
        "bne.w 1b",
        "add sp, #28",
        "pop {{r4-r11, pc}}",
        pitch = const PITCH * size_of::<i16>(),
    )
}

/// A row of one channel of the map as it is copied.
#[repr(C, align(4))]
struct Scratch {
    planes: [[[i16; PITCH]; PLANE_ROWS]; 2],
    weight: [[[i16; 2 * ROW_WORDS]; DEPTHWISE_SIDE]; 2],
    sums: [i32; MAX_STRIP + QUAD],
}

/// See [`crate::kernels::int8::Int8Kernels::depthwise`].
pub fn depthwise(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    let (channels, side, width) = (rows.channels, rows.side, area.x.len());
    // The rows of the map that any output looks at.
    let needed = area.y.start.saturating_sub(HALF)..(area.y.end + HALF).min(side);
    let columns = area.x.start.saturating_sub(HALF)..(area.x.end + HALF).min(side);
    let lengths = layer.bias.len() >= channels && layer.multiplier.len() >= channels;
    let fits =
        width > 0 && width <= MAX_STRIP && area.x.end <= side && area.y.end <= side && needed.len() <= PLANE_ROWS;
    let weights = layer.weight.len() >= DEPTHWISE_SIDE * DEPTHWISE_SIDE * channels;
    if !lengths || !fits || !weights || !channels.is_multiple_of(2) || output.len() < area.y.len() * width * channels {
        debug_assert!(false, "a depthwise layer of impossible shape");
        return;
    }
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: plain integers may be anything, zeros included; both planes' margins stay zero from here on.
    let scratch = unsafe {
        (&raw mut (*scratch).planes).write_bytes(0, 1);
        scratch
    };
    let margin = columns.start + HALF - area.x.start;
    for channel in (0..channels).step_by(2) {
        for (place, y) in needed.clone().enumerate() {
            let row = &rows.row(y)[columns.start * channels..columns.end * channels];
            // SAFETY: `place` is below PLANE_ROWS; the row has `columns.len()` pixels, which with the margin are at most MAX_STRIP + 2 * HALF.
            unsafe {
                let from = row.as_ptr().add(channel);
                let even = (&raw mut (*scratch).planes[0][place]).cast::<i16>().add(margin);
                let odd = (&raw mut (*scratch).planes[1][place]).cast::<i16>().add(margin);
                for column in 0..columns.len() {
                    let both = from.add(column * channels).cast::<u32>().read_unaligned();
                    even.add(column).write(both as i16);
                    odd.add(column).write((both >> 16) as i16);
                }
            }
        }
        for parity in 0..2 {
            // SAFETY: the scratch is this function's own; `pack` writes all of the weights.
            unsafe {
                pack(layer.weight, channels, channel + parity, &raw mut (*scratch).weight[parity]);
                let (bias, multiplier) = (layer.bias[channel + parity], i32::from(layer.multiplier[channel + parity]));
                for (line, y) in area.y.clone().enumerate() {
                    let first = y.saturating_sub(HALF);
                    let count = (y + HALF + 1).min(side) - first;
                    let sums = (&raw mut (*scratch).sums).cast::<i32>();
                    let sweep = Sweep {
                        sums,
                        end: sums.add(width.next_multiple_of(QUAD)),
                        plane: (&raw const (*scratch).planes[parity][first - needed.start]).cast(),
                        weight: (&raw const (*scratch).weight[parity][first + HALF - y]).cast(),
                        skip: (DEPTHWISE_SIDE - count) * ROW_CODE,
                        bias,
                    };
                    sweep_rows(&sweep);
                    let to = output.as_mut_ptr().add(line * width * channels + channel + parity);
                    for column in 0..width {
                        let narrow = ssat16(*sums.add(column) >> (layer.shift & 31));
                        to.add(column * channels).write((smlabb(narrow, multiplier, 1 << 14) >> 15) as i16);
                    }
                }
            }
        }
    }
}

/// The weights of one channel, each kernel row for even outputs and then for odd ones.
///
/// # Safety
/// There are 49 weights of each of `channels` channels, and `channel` is one of them.
#[inline(always)]
unsafe fn pack(weight: &[i8], channels: usize, channel: usize, to: *mut [[i16; 2 * ROW_WORDS]; DEPTHWISE_SIDE]) {
    for row in 0..DEPTHWISE_SIDE {
        // SAFETY: the caller's.
        unsafe {
            let from = weight.as_ptr().add(row * DEPTHWISE_SIDE * channels + channel);
            let w: [i16; DEPTHWISE_SIDE] = core::array::from_fn(|tap| i16::from(*from.add(tap * channels)));
            let [a, b, c, d, e, f, g] = w;
            to.cast::<[i16; 2 * ROW_WORDS]>().add(row).write([a, b, c, d, e, f, g, 0, 0, a, b, c, d, e, f, g]);
        }
    }
}
