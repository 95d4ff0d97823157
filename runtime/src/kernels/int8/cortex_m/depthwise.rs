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
//! **Stack.** 5 KiB.

use super::instructions::smlabb;
use super::instructions::ssat16;
use crate::kernels::int8::{Area, DEPTHWISE_SIDE, Depthwise, MAX_STRIP, Rows};
use core::arch::naked_asm;
use core::mem::MaybeUninit;
use core::ops::Range;

const HALF: usize = DEPTHWISE_SIDE / 2;
/// Outputs at a time.
const QUAD: usize = 4;
/// Values of a row of a plane: the longest strip and both margins, in whole words.
pub const PITCH: usize = (MAX_STRIP + 2 * HALF).next_multiple_of(QUAD);
/// The most rows that a strip looks at: 8 x 8 pixels look at 14.
const PLANE_ROWS: usize = 8 + 2 * HALF;
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
        env!("NADIR_ASSEMBLER_CPU"),
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

/// How an instruction set multiplies rows.
pub trait Scheme {
    /// The weights of a kernel row of one channel, as it wants them.
    type RowWeights;

    /// A kernel row of weights.
    fn pack(weight: [i16; DEPTHWISE_SIDE]) -> Self::RowWeights;

    /// The sums of a row of outputs, `bias` included, rounded up to whole quads.
    ///
    /// # Safety
    /// There is room for the sums, and a positive number of them. `plane` has seven rows of [`PITCH`] values, of which `rows` lie
    /// in the map and the others are zeros; there are seven rows of weights.
    unsafe fn sweep(
        sums: *mut i32,
        outputs: usize,
        plane: *const i16,
        weight: *const Self::RowWeights,
        rows: Range<usize>,
        bias: i32,
    );
}

/// Pairs of products: SMLAD.
pub struct Pairs;

impl Scheme for Pairs {
    /// For even outputs, then for odd ones.
    type RowWeights = [i16; 16];

    #[inline(always)]
    fn pack([a, b, c, d, e, f, g]: [i16; DEPTHWISE_SIDE]) -> [i16; 16] {
        [a, b, c, d, e, f, g, 0, 0, a, b, c, d, e, f, g]
    }

    #[inline(always)]
    unsafe fn sweep(
        sums: *mut i32,
        outputs: usize,
        plane: *const i16,
        weight: *const [i16; 16],
        rows: Range<usize>,
        bias: i32,
    ) {
        // SAFETY: the caller's; the row skipped to is one of the seven.
        unsafe {
            let sweep = Sweep {
                sums,
                end: sums.add(outputs.next_multiple_of(QUAD)),
                plane: plane.add(rows.start * PITCH),
                weight: weight.add(rows.start).cast(),
                skip: (DEPTHWISE_SIDE - rows.len()) * ROW_CODE,
                bias,
            };
            sweep_rows(&sweep);
        }
    }
}

/// Two channels, apart.
#[repr(C, align(16))]
struct Scratch<W> {
    planes: [[[i16; PITCH]; PLANE_ROWS]; 2],
    weight: [[W; DEPTHWISE_SIDE]; 2],
    sums: [i32; MAX_STRIP + QUAD],
}

/// See [`crate::kernels::int8::Int8Kernels::depthwise`].
pub fn depthwise<S: Scheme>(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    let (channels, side, width) = (rows.channels, rows.side, area.x.len());
    // The rows of the map that any output looks at.
    let needed = area.y.start.saturating_sub(HALF)..(area.y.end + HALF).min(side);
    let columns = area.x.start.saturating_sub(HALF)..(area.x.end + HALF).min(side);
    let lengths = layer.bias.len() >= channels && layer.multiplier.len() >= channels;
    let inside = width > 0 && width <= MAX_STRIP && area.x.end <= side && area.y.end <= side;
    let strip = area.y.len() <= PLANE_ROWS - 2 * HALF && rows.complete(&area.y);
    let fits = inside && strip && output.len() >= (area.y.len() * width).saturating_mul(channels);
    let weights = layer.weight.len() >= channels.saturating_mul(DEPTHWISE_SIDE * DEPTHWISE_SIDE);
    if !lengths || !fits || !weights || !channels.is_multiple_of(2) {
        debug_assert!(false, "a depthwise layer of impossible shape");
        return;
    }
    let mut scratch = MaybeUninit::<Scratch<S::RowWeights>>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: plain integers may be zeros; what lies outside the map stays so from here on.
    unsafe { (&raw mut (*scratch).planes).write_bytes(0, 1) };
    let margin = columns.start + HALF - area.x.start;
    for channel in (0..channels).step_by(2) {
        for y in needed.clone() {
            let row = rows.row(y).as_ptr();
            let place = y + HALF - area.y.start;
            // SAFETY: `place` is below PLANE_ROWS; the row is complete, and `columns` are of it: with the margin at most MAX_STRIP + 2 * HALF.
            unsafe {
                let from = row.add(columns.start * channels + channel);
                let even = (&raw mut (*scratch).planes[0]).cast::<i16>().add(place * PITCH + margin);
                let odd = (&raw mut (*scratch).planes[1]).cast::<i16>().add(place * PITCH + margin);
                for column in 0..columns.len() {
                    let both = from.add(column * channels).cast::<u32>().read_unaligned();
                    even.add(column).write(both as i16);
                    odd.add(column).write((both >> 16) as i16);
                }
            }
        }
        for parity in 0..2 {
            let channel = channel + parity;
            // SAFETY: the scratch is this function's own; all weights are written before they are read.
            unsafe {
                let weight = (&raw mut (*scratch).weight[parity]).cast::<S::RowWeights>();
                for row in 0..DEPTHWISE_SIDE {
                    let from = layer.weight.as_ptr().add(row * DEPTHWISE_SIDE * channels + channel);
                    weight.add(row).write(S::pack(core::array::from_fn(|tap| i16::from(*from.add(tap * channels)))));
                }
                let bias = *layer.bias.as_ptr().add(channel);
                let multiplier = i32::from(*layer.multiplier.as_ptr().add(channel));
                for (line, y) in area.y.clone().enumerate() {
                    // Of the seven rows.
                    let inside = HALF.saturating_sub(y)..DEPTHWISE_SIDE.min(side + HALF - y);
                    let sums = (&raw mut (*scratch).sums).cast::<i32>();
                    let plane = (&raw const (*scratch).planes[parity]).cast::<i16>().add(line * PITCH);
                    S::sweep(sums, width, plane, weight, inside, bias);
                    finish(
                        sums,
                        width,
                        layer.shift,
                        multiplier,
                        output.as_mut_ptr().add(line * width * channels + channel),
                        channels,
                    );
                }
            }
        }
    }
}

/// Scales the sums of a row of outputs of one channel.
///
/// # Safety
/// There are `width` sums, and as many places, `channels` values apart.
#[inline(always)]
unsafe fn finish(sums: *const i32, width: usize, shift: u32, multiplier: i32, to: *mut i16, channels: usize) {
    for column in 0..width {
        // SAFETY: the caller's.
        unsafe {
            let narrow = ssat16(*sums.add(column) >> (shift & 31));
            to.add(column * channels).write((smlabb(narrow, multiplier, 1 << 14) >> 15) as i16);
        }
    }
}
