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
  // The model file is of a version that this library does not read.
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
  // CRC-32C at the end of the file: names these very bytes.
  uint32_t file_crc;
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
