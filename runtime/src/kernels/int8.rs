//! The integer inner loops: the seam behind which an instruction set's own versions stand.
//!
//! The scalar versions here are the specification (`docs/integer-arithmetic.md`); every other set must give the same bits.
//! Accumulators are i32 and, for weights that the quantizer wrote, never overflow; for hostile weights they wrap.
//!
//! Layout: maps are `[height, width, channels]`, dense weights `[outputs, inputs]`, depthwise weights `[taps, channels]`, so that in
//! each of them the innermost loop runs over neighbouring bytes and a compiler can vectorise it.

/// Side of the depthwise kernel.
pub const DEPTHWISE_SIDE: usize = 7;

/// Where in a square map a run of pixels lies.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Row.
    pub y: usize,
    /// First column.
    pub x: usize,
    /// Number of pixels; they all lie in the row.
    pub len: usize,
}

/// One set of integer kernels.
#[derive(Clone, Copy)]
pub struct Int8Kernels {
    /// Name, for instance `scalar`.
    pub name: &'static str,
    /// Matrix product: `acc[p, o] = bias[o] + sum_k x[p, k] * weight[o, k]`; the lengths of `bias`, `weight` and `acc` give the shapes.
    pub dense: fn(x: &[i8], weight: &[i8], bias: &[i32], acc: &mut [i32]),
    /// The same with i16 inputs.
    pub dense_i16: fn(x: &[i16], weight: &[i8], bias: &[i32], acc: &mut [i32]),
    /// 7x7 depthwise convolution, padding 3, of a run of pixels of a `grid` x `grid` map; `bias.len()` channels.
    pub depthwise: fn(map: &[i16], grid: usize, run: Run, weight: &[i8], bias: &[i32], acc: &mut [i32]),
}

/// Plain Rust, on every processor.
pub static SCALAR: Int8Kernels = Int8Kernels { name: "scalar", dense, dense_i16, depthwise };

fn dense(x: &[i8], weight: &[i8], bias: &[i32], acc: &mut [i32]) {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len().max(1));
    for (x, acc) in x.chunks_exact(inputs).zip(acc.chunks_exact_mut(outputs)) {
        for ((weight, &bias), acc) in weight.chunks_exact(inputs).zip(bias).zip(acc) {
            let dot: i32 = x.iter().zip(weight).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
            *acc = bias.wrapping_add(dot);
        }
    }
}

fn dense_i16(x: &[i16], weight: &[i8], bias: &[i32], acc: &mut [i32]) {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len().max(1));
    for (x, acc) in x.chunks_exact(inputs).zip(acc.chunks_exact_mut(outputs)) {
        for ((weight, &bias), acc) in weight.chunks_exact(inputs).zip(bias).zip(acc) {
            *acc = x.iter().zip(weight).fold(bias, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)));
        }
    }
}

fn depthwise(map: &[i16], grid: usize, run: Run, weight: &[i8], bias: &[i32], acc: &mut [i32]) {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let channels = bias.len();
    for (column, acc) in (run.x..run.x + run.len).zip(acc.chunks_exact_mut(channels)) {
        acc.copy_from_slice(bias);
        let rows = run.y.saturating_sub(HALF)..(run.y + HALF + 1).min(grid);
        let columns = column.saturating_sub(HALF)..(column + HALF + 1).min(grid);
        for row in rows {
            for neighbour in columns.clone() {
                let tap = (row + HALF - run.y) * DEPTHWISE_SIDE + neighbour + HALF - column;
                let pixel = &map[(row * grid + neighbour) * channels..][..channels];
                let weight = &weight[tap * channels..][..channels];
                for ((acc, &x), &w) in acc.iter_mut().zip(pixel).zip(weight) {
                    *acc = acc.wrapping_add(i32::from(x) * i32::from(w));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn bytes(seed: u32, n: usize) -> Vec<i8> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as i8
            })
            .collect()
    }

    #[test]
    fn dense_is_a_matrix_product() {
        for (pixels, inputs, outputs) in [(1, 1, 1), (3, 24, 5), (4, 41, 7)] {
            let (x, w) = (bytes(1, pixels * inputs), bytes(2, outputs * inputs));
            let bias: Vec<i32> = (0..outputs as i32).map(|o| o * 1000 - 77).collect();
            let mut acc = vec![0; pixels * outputs];
            (SCALAR.dense)(&x, &w, &bias, &mut acc);
            let wide: Vec<i16> = x.iter().map(|&v| i16::from(v)).collect();
            let mut acc16 = vec![0; pixels * outputs];
            (SCALAR.dense_i16)(&wide, &w, &bias, &mut acc16);
            for p in 0..pixels {
                for o in 0..outputs {
                    let exact: i64 =
                        (0..inputs).map(|k| i64::from(x[p * inputs + k]) * i64::from(w[o * inputs + k])).sum();
                    assert_eq!(i64::from(acc[p * outputs + o]), exact + i64::from(bias[o]));
                    assert_eq!(acc16[p * outputs + o], acc[p * outputs + o]);
                }
            }
        }
    }

    #[test]
    fn depthwise_is_a_padded_convolution() {
        for (grid, channels) in [(1, 3), (5, 2), (9, 4)] {
            let map: Vec<i16> = bytes(3, grid * grid * channels).iter().map(|&v| i16::from(v) * 200).collect();
            let weight = bytes(4, 49 * channels);
            let bias: Vec<i32> = (0..channels as i32).collect();
            for y in 0..grid {
                let run = Run { y, x: grid / 3, len: grid - grid / 3 };
                let mut acc = vec![0; run.len * channels];
                (SCALAR.depthwise)(&map, grid, run, &weight, &bias, &mut acc);
                for (i, x) in (run.x..grid).enumerate() {
                    for c in 0..channels {
                        let mut exact = i64::from(bias[c]);
                        for ky in 0..7 {
                            for kx in 0..7 {
                                let (row, column) = (y as isize + ky - 3, x as isize + kx - 3);
                                if (0..grid as isize).contains(&row) && (0..grid as isize).contains(&column) {
                                    let at = (row as usize * grid + column as usize) * channels + c;
                                    exact +=
                                        i64::from(map[at]) * i64::from(weight[(ky * 7 + kx) as usize * channels + c]);
                                }
                            }
                        }
                        assert_eq!(i64::from(acc[i * channels + c]), exact);
                    }
                }
            }
        }
    }
}
