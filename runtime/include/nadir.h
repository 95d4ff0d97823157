/* Nadir: ConvNeXt V2 encoders that turn tiles into embeddings, without a heap. C99.
 *
 * Made from runtime/src/capi by `cargo xtask header`; do not edit. docs/c-abi.md tells how to use it.
 *
 * Functions return a nadir_status: 0 (NADIR_STATUS_OK) and above is good, below 0 is an error.
 */

#ifndef NADIR_H
#define NADIR_H

#include <stddef.h>
#include <stdint.h>

// Version of this interface: major * 65536 + minor. Programs built for another major version do not fit.
#define NADIR_ABI_VERSION 65536

// `nadir_error.section` where no section of the model file is concerned.
#define NADIR_NO_SECTION 4294967295

// Alignment of an arena, in bytes.
#define NADIR_ARENA_ALIGNMENT 64

// Alignment of a model file in memory, in bytes.
#define NADIR_MODEL_ALIGNMENT 64

// Bytes at the beginning of an arena that hold the encoder's handle.
#define NADIR_HANDLE_BYTES 4096

// The most bands of a model.
#define NADIR_MAX_BANDS 32

// Bytes of a public key for nadir_verify_signature.
#define NADIR_KEY_BYTES 32

// Product: the first `numbers` of the embedding about its centre, an int8 each with a scale of its own.
#define NADIR_PRODUCT_INT8 0

// Product: the signs of the embedding about its centre, a bit each; `numbers` is the embedding's dimension.
#define NADIR_PRODUCT_BINARY 1

// Product: the first `numbers` principal components, an int8 each with a scale of its own.
#define NADIR_PRODUCT_PCA 2

// Number of rungs: 0 nothing, 1 record, 2 binary code, 3 int8 embedding, 4 whole tile.
#define NADIR_RUNGS 5

// `nadir_candidate.bytes` of a rung that a tile does not have.
#define NADIR_NO_RUNG 4294967295

// Bytes of working memory that nadir_select needs for one tile.
#define NADIR_SELECT_BYTES 80

// A buffer of so many bytes holds any record's frame.
#define NADIR_RECORD_BYTES 40

// What a function has to say: 0 and above is good, below 0 is an error.
enum nadir_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Done.
  NADIR_STATUS_OK = 0,
  // The run goes on: call nadir_step again.
  NADIR_STATUS_MORE = 1,
  // A pointer is null that must not be.
  NADIR_STATUS_NULL_POINTER = -1,
  // A pointer is not aligned: `expected` is the alignment, `found` the address.
  NADIR_STATUS_MISALIGNED = -2,
  // An array does not have its length: `expected` and `found` count values.
  NADIR_STATUS_LENGTH = -3,
  // Two arrays overlap that must not.
  NADIR_STATUS_OVERLAP = -4,
  // The arena is too small: `expected` bytes are needed.
  NADIR_STATUS_ARENA_TOO_SMALL = -5,
  // The handle was not opened, was closed, or lies elsewhere than where it was opened.
  NADIR_STATUS_NOT_OPEN = -6,
  // nadir_step without nadir_start before it, or after the last step.
  NADIR_STATUS_NOT_STARTED = -7,
  // A number is none of those that are listed for it.
  NADIR_STATUS_UNKNOWN_VALUE = -8,
  // An index lies beyond the last.
  NADIR_STATUS_INDEX = -9,
  // This processor has no kernels of that name.
  NADIR_STATUS_NO_SUCH_KERNELS = -10,
  // The model's weights are f32 or f16, and this library was built without the engine for them.
  NADIR_STATUS_NO_FLOAT = -11,
  // The bytes are no .nadir file.
  NADIR_STATUS_MODEL_MAGIC = -20,
  // The model file is of a version that this library does not read, or that is not for such a model.
  NADIR_STATUS_MODEL_VERSION = -21,
  // The model file is cut off, or goes on after its end.
  NADIR_STATUS_MODEL_LENGTH = -22,
  // A CRC of the model file does not match: the file is damaged.
  NADIR_STATUS_MODEL_DAMAGED = -23,
  // The header of the model file does not decode, or a field of it is not possible.
  NADIR_STATUS_MODEL_HEADER = -24,
  // The architecture is beyond a limit.
  NADIR_STATUS_MODEL_ARCHITECTURE = -25,
  // A band of the model is not possible; `found` is its index.
  NADIR_STATUS_MODEL_BAND = -26,
  // The table of sections does not fit the architecture.
  NADIR_STATUS_MODEL_SECTION = -27,
  // A weight or constant of the model is not possible; `found` is its index in the section.
  NADIR_STATUS_MODEL_VALUE = -28,
  // The bytes are no intact prototype file.
  NADIR_STATUS_PROTOTYPES = -40,
  // The prototypes were made for another embedding space or dimension.
  NADIR_STATUS_PROTOTYPES_MISMATCH = -41,
  // An embedding is NaN or infinite.
  NADIR_STATUS_NOT_FINITE = -42,
  // The model file has no parity: it cannot be repaired.
  NADIR_STATUS_NO_PARITY = -50,
  // Words of the model file have more than one flipped bit: `found` of them, the first at byte `expected`.
  NADIR_STATUS_UNREPAIRABLE = -51,
  // The model file has no self-test.
  NADIR_STATUS_NO_SELF_TEST = -52,
  // The self-test gave other embeddings than those on record.
  NADIR_STATUS_SELF_TEST_FAILED = -53,
  // The model, or the delta, is not signed.
  NADIR_STATUS_NOT_SIGNED = -54,
  // It was signed with another key.
  NADIR_STATUS_OTHER_KEY = -55,
  // The public key is none.
  NADIR_STATUS_BAD_KEY = -56,
  // The signature is wrong: the file was changed after it was signed.
  NADIR_STATUS_BAD_SIGNATURE = -57,
  // The model's version, `found`, is less than the least allowed, `expected`.
  NADIR_STATUS_ROLLED_BACK = -58,
  // This library was built without the verification of signatures.
  NADIR_STATUS_NO_VERIFICATION = -59,
  // The model file holds no products.
  NADIR_STATUS_NO_PRODUCTS = -60,
  // The bytes are no delta that this library reads.
  NADIR_STATUS_DELTA = -61,
  // A part of the delta is damaged: `what` names it; of a block `found` is the number, `expected` the offset of its first byte.
  NADIR_STATUS_DELTA_DAMAGED = -62,
  // The slot does not hold the model for which the delta was made; nothing was written.
  NADIR_STATUS_OTHER_MODEL = -63,
  // The delta did not make the new model: send the old one again, whole.
  NADIR_STATUS_UPDATE_FAILED = -64,
  // A function of the slot or the journal failed: its number, without sign, in `found`, the offset in `expected`.
  NADIR_STATUS_DEVICE = -65,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum nadir_status nadir_status;
#else
typedef int32_t nadir_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Form of a model's weights.
enum nadir_weight_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Weights and arithmetic in f32.
  NADIR_WEIGHT_TYPE_F32 = 0,
  // Weights of convolutions in f16, arithmetic in f32.
  NADIR_WEIGHT_TYPE_F16 = 1,
  // Integers throughout; the same bits on every processor.
  NADIR_WEIGHT_TYPE_INT8 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum nadir_weight_type nadir_weight_type;
#else
typedef uint32_t nadir_weight_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Whether a tile goes on to the encoder.
enum nadir_verdict
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It does.
  NADIR_VERDICT_PASS = 0,
  // Too much is without data.
  NADIR_VERDICT_NO_DATA = 1,
  // Too much is saturated.
  NADIR_VERDICT_SATURATED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum nadir_verdict nadir_verdict;
#else
typedef uint32_t nadir_verdict;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How the sensor stores the values of a tile.
enum nadir_tile_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // uint8_t.
  NADIR_TILE_TYPE_U8 = 0,
  // uint16_t.
  NADIR_TILE_TYPE_U16 = 1,
  // float.
  NADIR_TILE_TYPE_F32 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum nadir_tile_type nadir_tile_type;
#else
typedef uint32_t nadir_tile_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// An opened model. Lies at the beginning of the arena given to nadir_open.
typedef struct nadir_encoder nadir_encoder;

// What a delta does.
typedef struct {
  // Length of the old file.
  size_t old_bytes;
  // Length of the new file; the slot must hold both, in whole pages.
  size_t new_bytes;
  // Version of the new model.
  uint32_t model_version;
  // 1 if the delta is signed.
  uint32_t is_signed;
  // SHA-256 of the old file.
  uint8_t old_hash[32];
  // SHA-256 of the new file.
  uint8_t new_hash[32];
} nadir_delta_info;

// What went wrong, more closely than the status says it.
typedef struct {
  // What the function returned.
  nadir_status status;
  // Index of the model's section concerned, or NADIR_NO_SECTION.
  uint32_t section;
  // What was found: a length, an address, a version, a CRC, an index; which of them, the status says.
  uint64_t found;
  // What was expected, in the same unit; 0 if there is no one such value.
  uint64_t expected;
  // The argument, field or tensor concerned, in ASCII, ended by a zero.
  char what[48];
} nadir_error;

// The work of applying a delta: opened by nadir_delta_open, gone on with by nadir_delta_step. Its words are of no use to a program.
typedef struct {
  // Opaque.
  uint64_t words[128];
} nadir_delta;

// Memory by pages. If all three functions are null, `context` points to `bytes` bytes that can be written one by one (RAM, FRAM, MRAM).
//
// The functions give 0, or a number of their own that says what is wrong. `erase` is given the start of a page and `page_bytes`; `write` a multiple of 64,
// and multiples of 64 bytes in erased memory; what it has written when it returns must stay. An interrupted erase or
// write may leave anything in its page, and nothing elsewhere.
typedef struct {
  // Given to the functions.
  void *context;
  // Length of the memory.
  size_t bytes;
  // Bytes that are erased together: a multiple of 64.
  size_t page_bytes;
  // Reads `length` bytes from `offset` on.
  int32_t (*read)(void *context, size_t offset, uint8_t *bytes, size_t length);
  // Erases the page at `offset`.
  int32_t (*erase)(void *context, size_t offset, size_t length);
  // Writes `length` bytes at `offset`.
  int32_t (*write)(void *context, size_t offset, const uint8_t *bytes, size_t length);
} nadir_storage;

// What a model is. Texts are ended by a zero.
typedef struct {
  // Height and width of a tile in pixels.
  uint32_t tile_side;
  // Number of bands.
  uint32_t bands;
  // Values of a tile: bands x side x side.
  uint32_t tile_values;
  // Values of an embedding.
  uint32_t embedding_dimension;
  // Form of the weights.
  nadir_weight_type precision;
  // CRC-32C of the file: names these very bytes.
  uint32_t file_crc;
  // Version of the model: a later one replaces an earlier one.
  uint32_t model_version;
  // Multiply-accumulates of one tile.
  uint64_t macs;
  // Bytes of the arena in use, the handle included.
  uint64_t arena_bytes;
  // Bit i is set if stage i computes its hidden maps twice, to save memory.
  uint32_t two_passes;
  // Name of the kernels, for instance "scalar".
  char kernels[16];
  // Name of the model.
  char name[33];
  // Embeddings may be compared only within one space.
  char embedding_space[33];
} nadir_model_info;

// One band of a model. Texts are ended by a zero.
typedef struct {
  // Its name, for instance "B4".
  char name[9];
  // What a stored value counts.
  char unit[25];
  // 1 if there is a value that means "no data".
  uint8_t has_no_data;
  // 1 if it is known at which value the sensor is saturated.
  uint8_t has_saturation;
  // Subtracted from a stored value.
  float mean;
  // Divides the difference.
  float std;
  // The value that means "no data", if there is one.
  float no_data;
  // The value at and above which the sensor is saturated, if it is known.
  float saturation;
} nadir_band_info;

// What nadir_repair has set right.
typedef struct {
  // Bits that were flipped and are no longer.
  uint64_t bits;
  // Offset in the file of the byte of the first of them, if there is one.
  uint64_t offset;
  // Its number in the byte, 0 the lowest.
  uint32_t bit;
} nadir_repair_sum;

// How many numbers a model's products have.
typedef struct {
  // Numbers of an embedding: the most of NADIR_PRODUCT_INT8.
  uint32_t dimension;
  // Principal components in the file, the most of NADIR_PRODUCT_PCA; may be 0.
  uint32_t components;
  // Bytes of NADIR_PRODUCT_BINARY. The others have as many bytes as numbers.
  uint32_t binary_bytes;
} nadir_products_info;

// Counts over the pixels of a tile, each counted once whatever the number of bands.
typedef struct {
  // Rows x columns.
  uint32_t pixels;
  // Pixels of which any band has no data.
  uint32_t no_data;
  // Pixels with data of which any band is saturated.
  uint32_t saturated;
  // Share without data in 1/1000.
  uint16_t no_data_permille;
  // Share saturated in 1/1000.
  uint16_t saturated_permille;
  // By the limits given.
  nadir_verdict verdict;
} nadir_quality;

// A checked prototype file: opened by nadir_prototypes_open, read by nadir_score. Its words are of no use to a program.
typedef struct {
  // Opaque.
  uint64_t words[24];
} nadir_prototypes;

// What an embedding said, rounded to 1/10000.
typedef struct {
  // Cosine to the nearest wanted prototype less that to the nearest other one, -2 to 2.
  float margin;
  // Probability that the tile is wanted.
  float probability;
  // Mean cosine distance to the three nearest vectors of the bank (of the prototypes, if there is no bank), 0 to 2.
  float novelty;
  // Class label of the nearest prototype.
  uint16_t nearest;
  // 1 if the novelty reaches the table's threshold.
  uint16_t is_novel;
} nadir_scores;

// What the operator wants. nadir_policy_default fills it.
typedef struct {
  // Worth of any tile that passed the quality check.
  float base;
  // Added at probability 1 of being wanted, in proportion below.
  float wanted;
  // Added at twice `novel_from`, nothing at it, in proportion between.
  float novel;
  // Probability from which a tile is called wanted.
  float wanted_from;
  // Novelty from which a tile is called novel.
  float novel_from;
  // Share of a tile's worth that each rung keeps.
  float fidelity[5];
  // Not 0: every tile's record goes before anything else.
  uint32_t always_record;
} nadir_policy;

// One tile of a choice.
typedef struct {
  // From nadir_worth.
  float worth;
  // Bytes down on each rung, or NADIR_NO_RUNG.
  uint32_t bytes[5];
} nadir_candidate;

// What a choice came to.
typedef struct {
  // Bytes down, at most the budget.
  uint64_t bytes;
  // Sum of worth x fidelity.
  double value;
} nadir_choice_sum;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// A short English sentence about a status, ended by a zero; for a number that is no status too. Never null.
const char *nadir_status_message(int32_t status);

// NADIR_ABI_VERSION of the library, to be compared with that of the header: the major version (upper 16 bits) must be equal.
uint32_t nadir_abi_version(void);

// Says what a delta does, without applying it.
//
// If a block is damaged, `error->found` is its number and `error->expected` the offset of its first byte: these 1024 bytes (or what is
// left of the body) need be sent again. `error`: may be null.
//
// The caller promises:
// `delta` points to `delta_bytes` readable bytes, `info` to a writable place; `error`, if not null, too.
nadir_status nadir_delta_describe(const uint8_t *delta,
                                  size_t delta_bytes,
                                  nadir_delta_info *info,
                                  nadir_error *error);

// Prepares the work of turning the model in a slot into another; nothing is written yet.
//
// `slot`: holds the old file at its beginning, and no encoder is open on it. `journal`: as many pages as a page of the slot takes, and two more; it is kept
// through a loss of power, as the delta is. `page`: memory for a page of the slot. `public_key`: NADIR_KEY_BYTES bytes, with which the
// delta must be signed; null if it need not be. `least_version`: the least version of the new model. `error`: may be null.
//
// The caller promises:
// The pointers, if not null, point to so much memory, which stays where it is until the work is done; the delta does not change; the
// functions of slot and journal keep to their description.
nadir_status nadir_delta_open(nadir_delta *work,
                              const uint8_t *delta,
                              size_t delta_bytes,
                              const nadir_storage *slot,
                              const nadir_storage *journal,
                              uint8_t *page,
                              size_t page_bytes,
                              const uint8_t *public_key,
                              uint32_t least_version,
                              nadir_error *error);

// Does the next bounded piece of work: NADIR_STATUS_MORE, or NADIR_STATUS_OK when the slot holds the new file, byte for byte.
//
// Then open it with nadir_open, which checks it whole, and before it becomes active call nadir_verify_signature and nadir_self_test.
// After a loss of power begin again with nadir_delta_open and the same delta and journal. NADIR_STATUS_OTHER_MODEL: the slot does not hold the old file, nothing was written.
// NADIR_STATUS_UPDATE_FAILED: send the old file again, whole. `error`: may be null.
//
// The caller promises:
// `work` comes from nadir_delta_open, and what was given there still stands.
nadir_status nadir_delta_step(nadir_delta *work,
                              nadir_error *error);

// How many bytes an arena of at most `budget` bytes must have for this model.
//
// An int8 model can do with less memory if it computes more: of all schedules within the budget this is the one that computes least.
// SIZE_MAX as budget gives the bytes of the fastest; a budget of 0 fails, and `error->expected` then has the fewest possible.
//
// `model`: a whole .nadir file, at a multiple of NADIR_MODEL_ALIGNMENT. `bytes`: the result. `error`: may be null.
//
// The caller promises:
// `model` points to `model_bytes` readable bytes; `bytes` and `error`, if not null, to writable places of their types.
nadir_status nadir_required_bytes(const uint8_t *model,
                                  size_t model_bytes,
                                  size_t budget,
                                  size_t *bytes,
                                  nadir_error *error);

// Checks a model and opens it in an arena, with the fastest kernels of this processor and the fastest schedule that fits.
//
// The bytes of the model are borrowed, not copied: they stay where and what they are until the encoder is closed. The arena belongs to
// the encoder until then, begins at a multiple of NADIR_ARENA_ALIGNMENT, and may hold anything before. `encoder`: the result, the
// arena's address; null after an error. `error`: may be null.
//
// The caller promises:
// The pointers point to so many readable (`model`) or writable bytes; `encoder` and `error`, if not null, to writable places.
nadir_status nadir_open(const uint8_t *model,
                        size_t model_bytes,
                        uint8_t *arena,
                        size_t arena_bytes,
                        nadir_encoder **encoder,
                        nadir_error *error);

// Ends the use of an encoder: model and arena are the caller's again.
//
// The caller promises:
// `encoder` comes from nadir_open, and its arena still stands.
nadir_status nadir_close(nadir_encoder *encoder);

// Chooses kernels by name, for instance "scalar", instead of the fastest; embeddings of int8 models do not change. Ends a run.
//
// `name` has `name_bytes` characters, without a final zero.
//
// The caller promises:
// `encoder` comes from nadir_open; `name` points to `name_bytes` readable bytes.
nadir_status nadir_use_kernels(nadir_encoder *encoder,
                               const char *name,
                               size_t name_bytes);

// What the model of an encoder is.
//
// The caller promises:
// `encoder` comes from nadir_open; `info`, if not null, points to a writable place outside the arena.
nadir_status nadir_describe(const nadir_encoder *encoder, nadir_model_info *info);

// Band `index` of the model, from 0, in the order of a tile's bands.
//
// The caller promises:
// `encoder` comes from nadir_open; `info`, if not null, points to a writable place outside the arena.
nadir_status nadir_band(const nadir_encoder *encoder, uint32_t index, nadir_band_info *info);

// Embeds one tile. Ends a run that was started before.
//
// `tile`: `values` values of `tile_type` (a nadir_tile_type), [bands, height, width] in the order of the model's bands.
// `embedding`: `dimension` values, exactly the model's. `error`: may be null.
// Nothing is written to `embedding` unless NADIR_STATUS_OK is returned.
//
// The caller promises:
// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
nadir_status nadir_embed(nadir_encoder *encoder,
                         uint32_t tile_type,
                         const void *tile,
                         size_t values,
                         float *embedding,
                         size_t dimension,
                         nadir_error *error);

// Begins to embed a tile that nadir_step then carries on; the arguments are those of nadir_embed.
//
// Tile and embedding stay where they are, and the tile what it is, until the last step. Ends a run that was started before.
//
// The caller promises:
// As nadir_embed, until the last step.
nadir_status nadir_start(nadir_encoder *encoder,
                         uint32_t tile_type,
                         const void *tile,
                         size_t values,
                         float *embedding,
                         size_t dimension,
                         nadir_error *error);

// Does the next step of a run: at most a strip of 64 pixels of one group of layers.
//
// Returns NADIR_STATUS_MORE while there is more to do, NADIR_STATUS_OK when the embedding is written. A run may rest between two
// steps for as long as it likes, and steps change no bit of the embedding. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; tile and embedding of nadir_start still stand.
nadir_status nadir_step(nadir_encoder *encoder,
                        nadir_error *error);

// Sets right every word of a model file with parity in which one bit is flipped, in place. Do it before nadir_open, never between that and
// nadir_close: an open encoder reads these bytes.
//
// Returns NADIR_STATUS_UNREPAIRABLE if some word has more; the others are set right all the same. Whether the file is whole only
// nadir_open says. `sum`: may be null; written in either case. `error`: may be null.
//
// The caller promises:
// `model` points to `model_bytes` readable and writable bytes; `sum` and `error`, if not null, to writable places elsewhere.
nadir_status nadir_repair(uint8_t *model,
                          size_t model_bytes,
                          nadir_repair_sum *sum,
                          nadir_error *error);

// Compares the next 4096 bytes at most of the model's memory with the CRCs and the parity of the file.
//
// Returns NADIR_STATUS_MORE, NADIR_STATUS_OK when the whole file was looked at once (the next call begins anew), or
// NADIR_STATUS_MODEL_DAMAGED, and then goes on behind the damage: `error->what` says what is wrong; of a block of the tensors
// `error->section` is the section where it begins. A run is not disturbed. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open.
nadir_status nadir_scrub(nadir_encoder *encoder,
                         nadir_error *error);

// Bytes of the memory that nadir_self_test needs for a tile.
//
// The caller promises:
// `encoder` comes from nadir_open; `bytes`, if not null, points to a writable place outside the arena.
nadir_status nadir_self_test_bytes(const nadir_encoder *encoder, size_t *bytes);

// Embeds the tiles of the model's self-test and compares the hash of their embeddings with the one in the file. Ends a run.
//
// Takes the time of as many embeddings as the test has tiles, at most 16. `tile`: memory for a tile, nadir_self_test_bytes at a multiple of
// 4. `embedding`: memory for an embedding, `dimension` values, exactly the model's. What they hold after is undefined. `error`:
// may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable and writable values.
nadir_status nadir_self_test(nadir_encoder *encoder,
                             uint8_t *tile,
                             size_t tile_bytes,
                             float *embedding,
                             size_t dimension,
                             nadir_error *error);

// Checks that the model was signed with the private half of a public key (Ed25519), and that its version is at least `least_version`.
//
// `public_key`: NADIR_KEY_BYTES bytes. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; `public_key`, if not null, points to so many readable bytes.
nadir_status nadir_verify_signature(const nadir_encoder *encoder,
                                    const uint8_t *public_key,
                                    uint32_t least_version,
                                    nadir_error *error);

// Tells which products the model's file holds; NADIR_STATUS_NO_PRODUCTS if none. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; `info` and `error`, if not null, point to writable places.
nadir_status nadir_products(const nadir_encoder *encoder, nadir_products_info *info, nadir_error *error);

// Writes a product of an embedding. Equal embeddings give equal bytes on every processor. Does not disturb a run.
//
// `product`: NADIR_PRODUCT_INT8, _BINARY or _PCA; `numbers`: how many. `embedding`: `dimension` values, the model's. `code`: exactly the
// product's bytes. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
nadir_status nadir_encode_product(const nadir_encoder *encoder,
                                  uint32_t product,
                                  size_t numbers,
                                  const float *embedding,
                                  size_t dimension,
                                  uint8_t *code,
                                  size_t code_bytes,
                                  nadir_error *error);

// Counts the pixels of a tile without data and those that are saturated, and judges by limits in 1/1000 (usual: 500 and 300).
//
// Tile as in nadir_embed. `quality`: the result. `error`: may be null.
//
// The caller promises:
// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
nadir_status nadir_assess(const nadir_encoder *encoder,
                          uint32_t tile_type,
                          const void *tile_values,
                          size_t values,
                          uint16_t no_data_limit,
                          uint16_t saturated_limit,
                          nadir_quality *quality,
                          nadir_error *error);

// Checks a prototype file, at any alignment, and that it was made for the model's embedding space.
//
// The bytes are borrowed: they stay where and what they are for as long as `table` is used.
//
// The caller promises:
// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
nadir_status nadir_prototypes_open(const nadir_encoder *encoder,
                                   const uint8_t *file,
                                   size_t file_bytes,
                                   nadir_prototypes *table,
                                   nadir_error *error);

// Compares an embedding with prototypes: nearness to what is wanted, and novelty.
//
// The caller promises:
// `table` comes from nadir_prototypes_open, its file still stands; the other pointers, if not null, point to so many values.
nadir_status nadir_score(const nadir_prototypes *table,
                         const float *embedding,
                         size_t dimension,
                         nadir_scores *scores,
                         nadir_error *error);

// The policy that `triage` has unless told otherwise.
//
// The caller promises:
// `policy`, if not null, points to a writable place.
nadir_status nadir_policy_default(nadir_policy *policy);

// Worth of a tile; `scores` is null for one that was not embedded. Finite and not negative.
//
// The caller promises:
// The pointers, if not null, point to readable or writable values.
nadir_status nadir_worth(const nadir_policy *policy, uint32_t verdict, const nadir_scores *scores, float *worth);

// Gives each of `tiles` tiles a rung (one byte in `rungs`), so that the sum of values is as large as `budget` bytes allow.
//
// `memory`: NADIR_SELECT_BYTES for each tile, at a multiple of 8; anything before and after. `sum`, `error`: may be null.
//
// The caller promises:
// The pointers, if not null, point to so many readable or writable values.
nadir_status nadir_select(const nadir_policy *policy,
                          const nadir_candidate *candidates,
                          size_t tiles,
                          uint64_t budget,
                          uint64_t *memory,
                          size_t memory_bytes,
                          uint8_t *rungs,
                          nadir_choice_sum *sum,
                          nadir_error *error);

// Writes the record of a tile as a frame, as links and outboxes hold it, and its length to `length`.
//
// `tile`: position in capture order. `scores`: null for a tile that was not embedded. `rung`, with the policy, gives the reason.
// A `buffer` of NADIR_RECORD_BYTES is always enough. `error`: may be null.
//
// The caller promises:
// The pointers, if not null, point to so many readable or writable values.
nadir_status nadir_record(const nadir_policy *policy,
                          uint32_t tile,
                          const nadir_quality *quality,
                          const nadir_scores *scores,
                          uint32_t rung,
                          uint8_t *buffer,
                          size_t buffer_bytes,
                          size_t *length,
                          nadir_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* NADIR_H */
