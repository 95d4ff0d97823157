//! The runtime alone, as a program that is linked but never run: one function that parses an int8 model and embeds a tile of bytes.
//!
//! With the feature `guard` the function also repairs, scrubs and self-tests the model, with `signature` it verifies who made it.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use nadir::Tile;
use nadir::encoder::Encoder;
use nadir::model::Model;

/// Parses `model`, embeds `tile`, and returns 0, or what went wrong.
///
/// # Safety
/// All four ranges exist, and all but the tile are nobody else's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn embed(
    model: *mut u8,
    model_bytes: usize,
    tile: *const u8,
    tile_bytes: usize,
    arena: *mut u8,
    arena_bytes: usize,
    embedding: *mut f32,
    values: usize,
) -> i32 {
    // SAFETY: the caller's.
    let (model, tile, arena, embedding) = unsafe {
        (
            core::slice::from_raw_parts_mut(model, model_bytes),
            core::slice::from_raw_parts(tile, tile_bytes),
            core::slice::from_raw_parts_mut(arena, arena_bytes),
            core::slice::from_raw_parts_mut(embedding, values),
        )
    };
    #[cfg(feature = "guard")]
    if nadir::guard::repair(model).is_err() {
        return 3;
    }
    let Ok(model) = Model::parse(model) else { return 1 };
    #[cfg(feature = "signature")]
    if nadir::guard::verify_signature(&model, &[7; 32], 1).is_err() {
        return 4;
    }
    #[cfg(feature = "guard")]
    {
        use nadir::guard::{Scrub, SelfTest};
        let encoder = Encoder::new(&model);
        let passed = SelfTest::of(&model).is_some_and(|test| {
            let (arena, tile) = arena.split_at_mut(arena.len() / 2);
            test.run(&encoder, tile, arena, embedding).is_ok()
        });
        if !passed || Scrub::new(&model).step(model.bytes()).is_err() {
            return 5;
        }
    }
    match Encoder::new(&model).embed(Tile::U8(tile), arena, embedding) {
        Ok(()) => 0,
        Err(_) => 2,
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
