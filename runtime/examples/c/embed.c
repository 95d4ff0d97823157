/* Embeds one raw tile with a .nadir model: at once, then in steps, and compares the two bit by bit.
 *
 *     embed MODEL.nadir TILE.raw u8|u16|f32 [ARENA_BYTES]
 *
 * TILE.raw holds the values of one tile as the sensor stores them, [bands, height, width] in the order of the model's bands.
 * Prints what the model is, then one value of the embedding a line, its bits in hexadecimal first. Exit code 0 if all went well.
 *
 * Here memory comes from malloc, because files may have any size; a flight program gives static arrays, as the library never
 * allocates. docs/c-abi.md says how to build this file.
 */
#include "nadir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `bytes` bytes at a multiple of `alignment`, a power of two; never freed, as the program ends soon. */
static void *aligned(size_t bytes, size_t alignment)
{
    unsigned char *memory = malloc(bytes + alignment);
    if (memory == NULL) {
        return NULL;
    }
    return memory + (alignment - (uintptr_t)memory % alignment) % alignment;
}

/* A whole file at a multiple of `alignment`; null, with a message, if it cannot be read. */
static uint8_t *read_file(const char *path, size_t alignment, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    uint8_t *memory = NULL;
    long length = -1;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        length = ftell(file);
    }
    if (length >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        memory = aligned((size_t)length, alignment);
        if (memory != NULL && fread(memory, 1, (size_t)length, file) != (size_t)length) {
            memory = NULL;
        }
        *bytes = (size_t)length;
    }
    if (file != NULL) {
        fclose(file);
    }
    if (memory == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
    }
    return memory;
}

/* Prints what went wrong; gives the exit code. */
static int failed(const nadir_error *error)
{
    fprintf(stderr, "%s: %s", error->what, nadir_status_message(error->status));
    if (error->section != NADIR_NO_SECTION) {
        fprintf(stderr, " (section %lu)", (unsigned long)error->section);
    }
    fprintf(stderr, ", found %.0f, expected %.0f\n", (double)error->found, (double)error->expected);
    return 1;
}

int main(int argc, char **argv)
{
    nadir_error error;
    nadir_encoder *encoder;
    nadir_model_info info;
    nadir_status status;
    size_t model_bytes, tile_bytes, arena_bytes, value_bytes, budget = SIZE_MAX;
    uint32_t tile_type, i, differing = 0;
    unsigned long steps = 0;

    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: embed MODEL.nadir TILE.raw u8|u16|f32 [ARENA_BYTES]\n");
        return 2;
    }
    if (nadir_abi_version() >> 16 != NADIR_ABI_VERSION >> 16) {
        fprintf(stderr, "header and library do not fit each other\n");
        return 2;
    }
    if (strcmp(argv[3], "u8") == 0) {
        tile_type = NADIR_TILE_TYPE_U8, value_bytes = 1;
    } else if (strcmp(argv[3], "u16") == 0) {
        tile_type = NADIR_TILE_TYPE_U16, value_bytes = 2;
    } else if (strcmp(argv[3], "f32") == 0) {
        tile_type = NADIR_TILE_TYPE_F32, value_bytes = 4;
    } else {
        fprintf(stderr, "%s: not u8, u16 or f32\n", argv[3]);
        return 2;
    }
    if (argc == 5) {
        budget = strtoul(argv[4], NULL, 10);
    }

    uint8_t *model = read_file(argv[1], NADIR_MODEL_ALIGNMENT, &model_bytes);
    uint8_t *tile = read_file(argv[2], 4, &tile_bytes);
    if (model == NULL || tile == NULL) {
        return 2;
    }
    if (nadir_required_bytes(model, model_bytes, budget, &arena_bytes, &error) < 0) {
        return failed(&error);
    }
    uint8_t *arena = aligned(arena_bytes, NADIR_ARENA_ALIGNMENT);
    if (arena == NULL) {
        return 2;
    }
    if (nadir_open(model, model_bytes, arena, arena_bytes, &encoder, &error) < 0) {
        return failed(&error);
    }
    if (nadir_describe(encoder, &info) < 0) {
        return 2;
    }
    printf("model %s, space %s, %s kernels\n", info.name, info.embedding_space, info.kernels);
    printf("tile %lu x %lu, bands", (unsigned long)info.tile_side, (unsigned long)info.tile_side);
    for (i = 0; i < info.bands; i++) {
        nadir_band_info band;
        if (nadir_band(encoder, i, &band) < 0) {
            return 2;
        }
        printf(" %s", band.name);
    }
    printf("\narena %lu bytes, stages in two passes: %#lx\n", (unsigned long)info.arena_bytes,
           (unsigned long)info.two_passes);

    float *embedding = malloc(info.embedding_dimension * sizeof *embedding);
    float *again = malloc(info.embedding_dimension * sizeof *again);
    if (embedding == NULL || again == NULL) {
        return 2;
    }
    status = nadir_embed(encoder, tile_type, tile, tile_bytes / value_bytes, embedding, info.embedding_dimension, &error);
    if (status < 0) {
        return failed(&error);
    }

    /* The same tile again in steps; between two of them a program may do something else. */
    status = nadir_start(encoder, tile_type, tile, tile_bytes / value_bytes, again, info.embedding_dimension, &error);
    while (status == NADIR_STATUS_MORE) {
        status = nadir_step(encoder, &error);
        steps++;
    }
    if (status < 0) {
        return failed(&error);
    }
    for (i = 0; i < info.embedding_dimension; i++) {
        differing += memcmp(&embedding[i], &again[i], sizeof *again) != 0;
    }
    printf("%lu steps, %lu values differ\n", steps, (unsigned long)differing);
    for (i = 0; i < info.embedding_dimension; i++) {
        uint32_t bits;
        memcpy(&bits, &embedding[i], sizeof bits);
        printf("%08lx %g\n", (unsigned long)bits, (double)embedding[i]);
    }
    nadir_close(encoder);
    return differing == 0 ? 0 : 1;
}
