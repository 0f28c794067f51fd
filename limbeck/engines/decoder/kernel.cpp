// What a decode step does between its matrix products, on a CPU: normalise, rotate, append to the
// cache, attend, gate; and its products of int8. `kernel.py` compiles this file and calls it;
// `plain.py` and `linear.py` do the same with torch's operations and are what it is tested against.
//
// Shapes: B rows, H heads, K key heads, E head width (a multiple of 16), C hidden width.
// T is float or bfloat16 (its 16 bits); every sum is in float.
// Keys lie in blocks of 16 positions, so that 16 scores grow in the lanes of one register: as
// (slots, K, capacity / 16, E, 16) in float, as (slots, K, capacity / 16, E / 2, 16, 2) in bfloat16,
// where one load brings two neighbours of E. Values lie as they come, (slots, K, capacity, E).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t bf16;

static inline void store(float *to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

static inline Lanes load(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline Lanes load(const bf16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    Words words = __builtin_convertvector(halves, Words) << 16;
    return (Lanes)words;
}

// Two registers at once. Of floats, the next 16 and those behind them; of bfloat16, 32 words of 16
// bits, the first and the second of each pair: a shift and a mask instead of two conversions.
static inline void load_two(const float *from, Lanes &first, Lanes &second) {
    first = load(from);
    second = load(from + 16);
}

static inline void load_two(const bf16 *from, Lanes &first, Lanes &second) {
    Words pairs;
    memcpy(&pairs, from, sizeof pairs);
    first = (Lanes)(pairs << 16);
    second = (Lanes)(pairs & 0xffff0000u);
}

// Where entry e of the key of position i lies in its block.
static inline int place_of(const float *, int e, int i) { return e * 16 + i; }
static inline int place_of(const bf16 *, int e, int i) { return e / 2 * 32 + i * 2 + e % 2; }

// 32 sums that grew as `load_two` gave them, added to where they belong.
static inline void add_two(const float *, float *to, Lanes first, Lanes second) {
    store(to, load(to) + first);
    store(to + 16, load(to + 16) + second);
}

static inline void add_two(const bf16 *, float *to, Lanes first, Lanes second) {
    for (int i = 0; i < 16; i++) {
        to[2 * i] += first[i];
        to[2 * i + 1] += second[i];
    }
}

static inline float value_of(float value) { return value; }

static inline float value_of(bf16 bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static inline void store(bf16 *to, Lanes lanes) {
    Words words = (Words)lanes;
    Words nearest = (words + 0x7fff + ((words >> 16) & 1)) >> 16;  // ties to even
    Words is_nan = (Words)(lanes != lanes);
    Halves halves = __builtin_convertvector((nearest & ~is_nan) | (is_nan & 0x7fc0), Halves);
    memcpy(to, &halves, sizeof halves);
}

static inline float total(Lanes lanes) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += lanes[i];
    return sum;
}

static inline Lanes all(float value) { return value - Lanes{}; }

// e^x to 2e-7: 2^n for the whole part of x log2(e), a polynomial for the rest. Nothing below -87.
static inline Lanes exponential(Lanes exact) {
    Lanes x = exact < -87.0f ? all(-87.0f) : (exact > 88.0f ? all(88.0f) : exact);
    Lanes scaled = x * 1.44269504f;
    Ints whole = __builtin_convertvector(scaled + (scaled < 0 ? all(-0.5f) : all(0.5f)), Ints);
    Lanes n = __builtin_convertvector(whole, Lanes);
    Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Lanes power = p * (Lanes)((whole + 127) << 23);
    return exact < -87.0f ? Lanes{} : power;
}

// hidden (B, C) += added (B, C), if there is one; out = hidden / rms(hidden) * weight
// (Zhang & Sennrich 2019, 1910.07467).
template <typename T>
static void add_norm(float *hidden, const T *added, const float *weight, float epsilon, T *out,
                     int rows, int width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int row = 0; row < rows; row++) {
        float *x = hidden + (int64_t)row * width;
        T *y = out + (int64_t)row * width;
        Lanes squares = {};
        for (int c = 0; c < width; c += 16) {
            Lanes lanes = load(x + c);
            if (added) store(x + c, lanes += load(added + (int64_t)row * width + c));
            squares += lanes * lanes;
        }
        float scale = 1.0f / std::sqrt(total(squares) / width + epsilon);
        for (int c = 0; c < width; c += 16) store(y + c, load(x + c) * scale * load(weight + c));
    }
}

// out (B, I) = silu(both[:, :I]) * both[:, I:] (Shazeer 2020, 2002.05202).
template <typename T>
static void gate(const T *both, T *out, int rows, int width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int row = 0; row < rows; row++) {
        const T *gates = both + (int64_t)row * 2 * width, *ups = gates + width;
        T *y = out + (int64_t)row * width;
        for (int c = 0; c < width; c += 16) {
            Lanes x = load(gates + c);
            store(y + c, x / (1.0f + exponential(-x)) * load(ups + c));
        }
    }
}

// One head (E): normalised if there is a weight, then rotated by half if there are angles.
template <typename T>
static void turned(const T *head, const float *norm, float epsilon, const float *cosines,
                   const float *sines, int width, float *out) {
    Lanes squares = {};
    for (int e = 0; e < width; e += 16) {
        Lanes lanes = load(head + e);
        squares += lanes * lanes;
        store(out + e, lanes);
    }
    if (norm) {
        float scale = 1.0f / std::sqrt(total(squares) / width + epsilon);
        for (int e = 0; e < width; e += 16) store(out + e, load(out + e) * scale * load(norm + e));
    }
    if (cosines) {
        int half = width / 2;
        for (int e = 0; e < half; e++) {
            float first = out[e], second = out[e + half];
            out[e] = first * cosines[e] - second * sines[e];
            out[e + half] = second * cosines[e] + first * sines[e];
        }
    }
}

// scores (G, stride) of G queries (G, E) against the keys of positions [first, end), 16 at a time.
template <typename T, int G>
static void scores_of(const float *queries, const T *keys, int width, int first, int end,
                      float *scores, int stride) {
    for (int block = first / 16; block * 16 < end; block++) {
        const T *key = keys + (int64_t)block * width * 16;
        Lanes even[G] = {}, odd[G] = {};  // two chains, as one would wait for itself
        for (int e = 0; e < width; e += 2) {
            Lanes lanes, next;
            load_two(key + e * 16, lanes, next);
            for (int g = 0; g < G; g++) {
                even[g] += queries[g * width + e] * lanes;
                odd[g] += queries[g * width + e + 1] * next;
            }
        }
        for (int g = 0; g < G; g++) store(scores + g * stride + block * 16, even[g] + odd[g]);
    }
}

// out (G, 32 W) += shares (G, stride) of positions [first, end) times 32 W entries of their values.
template <typename T, int G, int W>
static void add_values(const float *shares, int stride, const T *values, int width, int first,
                       int end, float *out) {
    Lanes sums[G][2 * W] = {};
    for (int position = first; position < end; position++)
        for (int w = 0; w < W; w++) {
            Lanes lanes, next;
            load_two(values + (int64_t)position * width + w * 32, lanes, next);
            for (int g = 0; g < G; g++) {
                sums[g][2 * w] += shares[g * stride + position] * lanes;
                sums[g][2 * w + 1] += shares[g * stride + position] * next;
            }
        }
    for (int g = 0; g < G; g++)
        for (int w = 0; w < W; w++)
            add_two(values, out + g * width + w * 32, sums[g][2 * w], sums[g][2 * w + 1]);
}

// The same for the last 16 entries of a width that is no multiple of 32.
template <typename T, int G>
static void add_last_values(const float *shares, int stride, const T *values, int width, int first,
                            int end, float *out) {
    Lanes sums[G] = {};
    for (int position = first; position < end; position++) {
        Lanes lanes = load(values + (int64_t)position * width);
        for (int g = 0; g < G; g++) sums[g] += shares[g * stride + position] * lanes;
    }
    for (int g = 0; g < G; g++) store(out + g * width, load(out + g * width) + sums[g]);
}

// A stretch of the cache that a row sees: positions [first, end) of one slot and key head.
template <typename T> struct Stretch {
    const T *keys, *values;
    int first, end, offset;  // its scores begin at `offset`
};

// out (G, E): softmax attention of G heads that share a key head over two stretches.
template <typename T, int G>
static void attend_head(const float *queries, const Stretch<T> *stretches, int width, float *scores,
                        int stride, float *out) {
    for (int s = 0; s < 2; s++) {
        const Stretch<T> &part = stretches[s];
        float *mine = scores + part.offset;
        scores_of<T, G>(queries, part.keys, width, part.first, part.end, mine, stride);
        for (int g = 0; g < G; g++) {  // lanes of the first and last block that are not seen
            for (int i = part.first & ~15; i < part.first; i++) mine[g * stride + i] = -INFINITY;
            for (int i = part.end; i & 15; i++) mine[g * stride + i] = -INFINITY;
        }
    }
    for (int g = 0; g < G; g++) {
        Lanes most = all(-INFINITY);
        float sum = 0;
        for (int s = 0; s < 2; s++)
            for (int i = stretches[s].first & ~15; i < stretches[s].end; i += 16) {
                Lanes lanes = load(scores + g * stride + stretches[s].offset + i);
                most = lanes > most ? lanes : most;
            }
        float highest = most[0];
        for (int i = 1; i < 16; i++) highest = most[i] > highest ? most[i] : highest;
        Lanes sums = {};
        for (int s = 0; s < 2; s++)
            for (int i = stretches[s].first & ~15; i < stretches[s].end; i += 16) {
                float *place = scores + g * stride + stretches[s].offset + i;
                Lanes shares = exponential(load(place) - highest);
                store(place, shares);
                sums += shares;
            }
        sum = total(sums);
        for (int e = 0; e < width; e++) out[g * width + e] = 0;
        for (int s = 0; s < 2; s++)
            for (int i = stretches[s].first & ~15; i < stretches[s].end; i += 16) {
                float *place = scores + g * stride + stretches[s].offset + i;
                store(place, load(place) / sum);
            }
    }
    for (int s = 0; s < 2; s++) {
        const Stretch<T> &part = stretches[s];
        const float *mine = scores + part.offset;
        const int from = part.first, to = part.end;
        int e = 0;
        for (; e + 64 <= width; e += 64)
            add_values<T, G, 2>(mine, stride, part.values + e, width, from, to, out + e);
        for (; e + 32 <= width; e += 32)
            add_values<T, G, 1>(mine, stride, part.values + e, width, from, to, out + e);
        if (e < width)
            add_last_values<T, G>(mine, stride, part.values + e, width, from, to, out + e);
    }
}

struct Shape {
    int32_t rows, heads, key_heads, width, window, threads;  // window 0: everything is seen
    int32_t prompt_capacity, own_capacity;                   // positions of a slot, multiples of 16
    float scale, epsilon;
};

// One new token for each of B rows: qkv (B, (H + 2 K) E) gives its queries, and its key and value,
// which are appended to the row's own slot; out (B, H E). A row sees its prompt's slot, which it
// shares with others, and its own. positions (B) counts both.
template <typename T>
static void attend(const Shape &shape, const T *qkv, const float *query_norm, const float *key_norm,
                   const float *cosines, const float *sines, const int32_t *positions,
                   const int32_t *prompt_slots, const int32_t *prompt_lengths,
                   const int32_t *own_slots, const T *prompt_keys, const T *prompt_values,
                   T *own_keys, T *own_values, T *out) {
    const int H = shape.heads, K = shape.key_heads, E = shape.width, group = H / K;
#pragma omp parallel for num_threads(shape.threads) if (shape.threads > 1) schedule(dynamic, 4)
    for (int row = 0; row < shape.rows; row++) {
        const int position = positions[row], prompted = prompt_lengths[row];
        const int own = position - prompted;  // where the new token goes
        const int from = shape.window && position >= shape.window ? position - shape.window + 1 : 0;
        const int64_t angle = (int64_t)position * (E / 2);
        const float *cosine = cosines ? cosines + angle : nullptr;
        const float *sine = sines ? sines + angle : nullptr;
        const T *query = qkv + (int64_t)row * (H + 2 * K) * E;
        const T *key = query + H * E, *value = key + K * E;
        const int room = (prompted + 15) / 16 * 16, stride = room + own / 16 * 16 + 16;
        std::vector<float> space((int64_t)group * (2 * E + stride) + E);
        float *queries = space.data(), *made = queries + group * E, *turned_key = made + group * E;
        float *scores = turned_key + E;
        for (int k = 0; k < K; k++) {
            const int64_t prompt_at =
                ((int64_t)prompt_slots[row] * K + k) * shape.prompt_capacity * E;
            const int64_t own_at = ((int64_t)own_slots[row] * K + k) * shape.own_capacity * E;
            turned(key + k * E, key_norm, shape.epsilon, cosine, sine, E, turned_key);
            T *block = own_keys + own_at + (int64_t)(own / 16) * E * 16;
            T *line = own_values + own_at + (int64_t)own * E, rounded[16];
            for (int e = 0; e < E; e += 16) {
                store(rounded, load(turned_key + e));
                for (int i = 0; i < 16; i++) block[place_of(block, e + i, own % 16)] = rounded[i];
                store(line + e, load(value + k * E + e));
            }
            for (int g = 0; g < group; g++) {
                float *head = queries + g * E;
                turned(query + (k * group + g) * E, query_norm, shape.epsilon, cosine, sine, E,
                       head);
                for (int e = 0; e < E; e++) head[e] *= shape.scale;
            }
            const Stretch<T> stretches[2] = {
                {prompt_keys + prompt_at, prompt_values + prompt_at, from < prompted ? from : prompted,
                 prompted, 0},
                {own_keys + own_at, own_values + own_at, from > prompted ? from - prompted : 0,
                 own + 1, room}};
            int g = 0;
            for (; g + 4 <= group; g += 4)
                attend_head<T, 4>(queries + g * E, stretches, E, scores, stride, made + g * E);
            for (; g + 3 <= group; g += 3)
                attend_head<T, 3>(queries + g * E, stretches, E, scores, stride, made + g * E);
            for (; g + 2 <= group; g += 2)
                attend_head<T, 2>(queries + g * E, stretches, E, scores, stride, made + g * E);
            for (; g < group; g++)
                attend_head<T, 1>(queries + g * E, stretches, E, scores, stride, made + g * E);
            T *to = out + ((int64_t)row * H + k * group) * E;
            for (int e = 0; e < group * E; e += 16) store(to + e, load(made + e));
        }
    }
}

// Which of a row's V weights (the largest is 1) the filters keep: all above `weight`, and of those
// equal to it the first `ties`. `mass` is what they weigh together.
struct Kept {
    float weight;
    int ties;
    double mass;
};

static const int BUCKETS = 1024;  // eighths of an octave: 128 octaves below 1 hold every float

static inline int bucket_of(float weight) {
    int32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    int bucket = (0x3f800000 - bits) >> 20;
    return bucket < 0 ? 0 : bucket < BUCKETS ? bucket : BUCKETS - 1;
}

// The heaviest weights, at most `most` of them, as few as weigh `mass` together: by a histogram,
// of which only the bucket that the border runs through is sorted.
static Kept heaviest(const float *weights, int vocabulary, int most, double mass) {
    std::vector<double> sums(BUCKETS, 0.0);
    std::vector<int> counts(BUCKETS, 0);
    for (int v = 0; v < vocabulary; v++) {
        int bucket = bucket_of(weights[v]);
        sums[bucket] += weights[v];
        counts[bucket]++;
    }
    double before = 0;
    int taken = 0, border = 0;
    while (border < BUCKETS - 1 && taken + counts[border] < most && before + sums[border] < mass) {
        before += sums[border];
        taken += counts[border++];
    }
    std::vector<float> inside;
    for (int v = 0; v < vocabulary; v++)
        if (bucket_of(weights[v]) == border) inside.push_back(weights[v]);
    std::sort(inside.begin(), inside.end(), std::greater<float>());
    Kept kept = {0.0f, vocabulary, before};
    for (float weight : inside) {
        if (taken >= most || kept.mass >= mass) break;
        kept.ties = weight == kept.weight ? kept.ties + 1 : 1;
        kept.weight = weight;
        kept.mass += weight;
        taken++;
    }
    return kept;
}

// Temperature, then top-k, then the nucleus of what remains, then min-p, and a draw from the rest
// at `uniform` by the inverse of its distribution function, tokens in their order. At temperature 0
// the likeliest. Gives the token, and its log-probability under what was drawn from (at
// temperature 0 the model's own). `draw.py` says the same with torch's operations.
template <typename T>
static int64_t draw_row(const T *logits, int vocabulary, float temperature, double top_p,
                        int64_t top_k, float min_p, double uniform, float *weights,
                        float *logprob) {
    Lanes most = all(-INFINITY);
    int v = 0;
    for (; v + 16 <= vocabulary; v += 16) {
        Lanes lanes = load(logits + v);
        most = lanes > most ? lanes : most;
    }
    float highest = most[0];
    for (int i = 1; i < 16; i++) highest = most[i] > highest ? most[i] : highest;
    T rest[16] = {};
    int left = vocabulary - v;
    memcpy(rest, logits + v, left * sizeof(T));
    Lanes last = load(rest);
    for (int i = 0; i < left; i++) highest = last[i] > highest ? last[i] : highest;

    const float cold = temperature > 0 ? 1.0f / temperature : 1.0f;
    double mass = 0;
    for (v = 0; v + 16 <= vocabulary; v += 16) {
        Lanes lanes = exponential((load(logits + v) - highest) * cold);
        store(weights + v, lanes);
        mass += total(lanes);
    }
    Lanes lanes = exponential((last - highest) * cold);
    for (int i = 0; i < left; i++) mass += weights[v + i] = lanes[i];

    if (!(mass < INFINITY)) {  // a logit that is not finite: no draw, and whoever asked will see
        *logprob = NAN;
        return 0;
    }
    if (temperature == 0) {
        for (v = 0; v < vocabulary; v++)
            if (value_of(logits[v]) == highest) break;
        *logprob = -std::log(mass);
        return v;
    }
    Kept kept = {0.0f, vocabulary, mass};
    if (top_k < vocabulary) kept = heaviest(weights, vocabulary, top_k, INFINITY);
    if (top_p < 1) {
        Kept nucleus = heaviest(weights, vocabulary, top_k, top_p * kept.mass);
        if (nucleus.mass < kept.mass) kept = nucleus;
    }
    if (min_p > kept.weight) {  // among equals all stay, so only what lies below goes
        kept = {min_p, vocabulary, 0};
        for (v = 0; v < vocabulary; v++) kept.mass += weights[v] >= min_p ? weights[v] : 0;
    }
    const double target = uniform * kept.mass;
    double sum = 0;
    int ties = 0, found = 0;
    for (v = 0; v < vocabulary && !(sum > target); v++) {
        float weight = weights[v];
        if (weight < kept.weight || (weight == kept.weight && ties++ >= kept.ties)) continue;
        sum += weight;
        if (weight > 0) found = v;
    }
    *logprob = std::log(weights[found] / kept.mass);
    return found;
}

template <typename T>
static void draw(const T *logits, const float *temperature, const double *top_p,
                 const int64_t *top_k, const float *min_p, const double *uniforms, int64_t *tokens,
                 float *logprobs, int rows, int vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int row = 0; row < rows; row++) {
        std::vector<float> weights(vocabulary + 16);
        tokens[row] = draw_row<T>(logits + (int64_t)row * vocabulary, vocabulary, temperature[row],
                                  top_p[row], top_k[row], min_p[row], uniforms[row],
                                  weights.data(), logprobs + row);
    }
}

#ifdef __AVX512VNNI__

// Where four neighbours of a row are multiplied and added in each lane of one instruction. It takes
// one side without a sign: rows are raised by 128, and what that adds to a sum is taken off again.

// x (C) to whole numbers, times `scale` of which it is again: absmax is 127. As `round_rows`.
template <typename T>
static void round_row(const T *x, int width, uint8_t *raised, float *scale) {
    Ints most = {};  // of floats without their signs, as whole numbers: so NaN is above all
    for (int c = 0; c < width; c += 16) {
        Ints bits = (Ints)load(x + c) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    int32_t highest = most[0];
    for (int i = 1; i < 16; i++) highest = most[i] > highest ? most[i] : highest;
    float absmax;
    memcpy(&absmax, &highest, sizeof absmax);
    const float shrink = 127.0f / (absmax == 0 ? 1.0f : absmax);
    for (int c = 0; c < width; c += 16) {
        Ints whole = (Ints)_mm512_cvtps_epi32((__m512)(load(x + c) * shrink)) + 128;
        __m128i bytes = _mm512_cvtepi32_epi8((__m512i)whole);
        memcpy(raised + c, &bytes, sizeof bytes);
    }
    *scale = absmax / 127.0f;
}

// sums (R, W, 16) of R rows (C) and W blocks of codes (C / 4, 16, 4).
template <int R, int W>
static void sums_of(const uint8_t *rows, const int8_t *blocks, int width, Ints (*sums)[W]) {
    __m512i sum[R][W] = {};
    for (int c = 0; c < width; c += 4) {
        __m512i codes[W];
        for (int w = 0; w < W; w++)
            codes[w] = _mm512_loadu_si512(blocks + ((int64_t)w * width + c) * 16);
        for (int r = 0; r < R; r++) {
            int32_t four;
            memcpy(&four, rows + (int64_t)r * width + c, sizeof four);
            const __m512i same = _mm512_set1_epi32(four);
            for (int w = 0; w < W; w++) sum[r][w] = _mm512_dpbusd_epi32(sum[r][w], same, codes[w]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) sums[r][w] = (Ints)sum[r][w];
}

template <typename T> struct Product {
    const uint8_t *rows;  // (B, C)
    const float *row_scales;
    const int8_t *blocks;  // (N / 16, C / 4, 16, 4)
    const int32_t *raised;  // (N), what 128 in each place of a row adds
    const float *scales, *bias;  // (N)
    T *out;  // (B, N)
    int num_rows, width, num_outputs;
};

// R rows from `row` by W blocks from `block`.
template <typename T, int R, int W>
static void multiply_some(const Product<T> &product, int row, int block) {
    Ints sums[R][W];
    const int64_t width = product.width;
    sums_of<R, W>(product.rows + row * width, product.blocks + block * width * 16, product.width,
                  sums);
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) {
            const int at = (block + w) * 16;
            Ints raised;
            memcpy(&raised, product.raised + at, sizeof raised);
            Lanes lanes = __builtin_convertvector(sums[r][w] - raised, Lanes);
            lanes = lanes * product.row_scales[row + r] * load(product.scales + at);
            if (product.bias) lanes += load(product.bias + at);
            store(product.out + (int64_t)(row + r) * product.num_outputs + at, lanes);
        }
}

template <typename T, int W>
static void multiply_blocks(const Product<T> &product, int block) {
    int row = 0;
    for (; row + 4 <= product.num_rows; row += 4) multiply_some<T, 4, W>(product, row, block);
    for (; row + 2 <= product.num_rows; row += 2) multiply_some<T, 2, W>(product, row, block);
    for (; row < product.num_rows; row++) multiply_some<T, 1, W>(product, row, block);
}

// out (B, N) = x (B, C) by codes of int8 in blocks, each row of x rounded to int8 first.
template <typename T>
static void multiply(const T *x, const int8_t *blocks, const int32_t *raised, const float *scales,
                     const float *bias, T *out, int num_rows, int width, int num_outputs,
                     int threads) {
    std::vector<uint8_t> rows((int64_t)num_rows * width);
    std::vector<float> row_scales(num_rows);
    const Product<T> product = {rows.data(), row_scales.data(), blocks, raised, scales, bias, out,
                                num_rows, width, num_outputs};
    const int num_blocks = num_outputs / 16;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
        for (int row = 0; row < num_rows; row++)
            round_row(x + (int64_t)row * width, width, rows.data() + (int64_t)row * width,
                      &row_scales[row]);
#pragma omp for
        for (int block = 0; block < num_blocks; block += 4) {
            if (block + 4 <= num_blocks) multiply_blocks<T, 4>(product, block);
            else for (int one = block; one < num_blocks; one++) multiply_blocks<T, 1>(product, one);
        }
    }
}

#define EXPORT_MULTIPLY(T, name)                                                                   \
    extern "C" void multiply_##name(const T *x, const int8_t *blocks, const int32_t *raised,       \
                                    const float *scales, const float *bias, T *out, int num_rows,  \
                                    int width, int num_outputs, int threads) {                     \
        multiply<T>(x, blocks, raised, scales, bias, out, num_rows, width, num_outputs, threads);  \
    }

EXPORT_MULTIPLY(float, float32)
EXPORT_MULTIPLY(bf16, bfloat16)

#endif

#define EXPORT(T, name)                                                                            \
    extern "C" void add_norm_##name(float *hidden, const T *added, const float *weight,           \
                                    float epsilon, T *out, int rows, int width, int threads) {     \
        add_norm<T>(hidden, added, weight, epsilon, out, rows, width, threads);                    \
    }                                                                                              \
    extern "C" void gate_##name(const T *both, T *out, int rows, int width, int threads) {         \
        gate<T>(both, out, rows, width, threads);                                                  \
    }                                                                                              \
    extern "C" void draw_##name(const T *logits, const float *temperature, const double *top_p,   \
                                const int64_t *top_k, const float *min_p, const double *uniforms,  \
                                int64_t *tokens, float *logprobs, int rows, int vocabulary,        \
                                int threads) {                                                     \
        draw<T>(logits, temperature, top_p, top_k, min_p, uniforms, tokens, logprobs, rows,        \
                vocabulary, threads);                                                              \
    }                                                                                              \
    extern "C" void attend_##name(                                                                 \
        const Shape *shape, const T *qkv, const float *query_norm, const float *key_norm,          \
        const float *cosines, const float *sines, const int32_t *positions,                        \
        const int32_t *prompt_slots, const int32_t *prompt_lengths, const int32_t *own_slots,      \
        const T *prompt_keys, const T *prompt_values, T *own_keys, T *own_values, T *out) {        \
        attend<T>(*shape, qkv, query_norm, key_norm, cosines, sines, positions, prompt_slots,      \
                  prompt_lengths, own_slots, prompt_keys, prompt_values, own_keys, own_values,     \
                  out);                                                                            \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
