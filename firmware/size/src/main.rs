//! The runtime alone, as a program that is linked but never run: one function that parses an int8 model and embeds a tile of bytes.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use nadir::Tile;
use nadir::encoder::Encoder;
use nadir::model::Model;

/// Parses `model`, embeds `tile`, and returns 0, or what went wrong.
///
/// # Safety
/// All four ranges exist; the last two are nobody else's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn embed(
    model: *const u8,
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
            core::slice::from_raw_parts(model, model_bytes),
            core::slice::from_raw_parts(tile, tile_bytes),
            core::slice::from_raw_parts_mut(arena, arena_bytes),
            core::slice::from_raw_parts_mut(embedding, values),
        )
    };
    let Ok(model) = Model::parse(model) else { return 1 };
    match Encoder::new(&model).embed(Tile::U8(tile), arena, embedding) {
        Ok(()) => 0,
        Err(_) => 2,
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
