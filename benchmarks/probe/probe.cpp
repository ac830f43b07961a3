// SPDX-License-Identifier: Apache-2.0
// The machine's ceilings, measured: what its instructions can do when nothing else is in the way.
//
//   probe THREADS [SECONDS]    prints one JSON object; a figure that this machine cannot have is null
//
// Every loop runs on each of THREADS threads at once, for SECONDS; the best of five slices counts. What each kernel needs is
// asked of cpuid (and, for AMX, of the kernel) first. No instruction-set flag stands on the compile line: each function
// carries its own target.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
volatile float g_sink;  // keeps results alive

constexpr int kSlices = 5;
constexpr int kSteps = 2000;  // loop turns between two looks at the clock

// One call of a body is `kSteps` turns; it returns a value that must not be optimized away.
using Body = std::function<float()>;

// Calls per second of `threads` bodies running together: the best slice, since a shared machine only ever slows down.
double best_rate(int threads, double seconds, const std::function<Body(int)>& make) {
  double best = 0;
  for (int slice = 0; slice < kSlices; ++slice) {
    std::vector<std::thread> pool;
    std::vector<double> rates(threads);
    std::atomic<int> ready{0};
    for (int index = 0; index < threads; ++index) {
      pool.emplace_back([&, index] {
        Body body = make(index);
        float sum = body();  // touches its memory and brings the clock up
        ++ready;
        while (ready < threads) std::this_thread::yield();
        const auto begin = Clock::now();
        double elapsed = 0;
        int64_t calls = 0;
        do {
          sum += body();
          ++calls;
          elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
        } while (elapsed < seconds / kSlices);
        rates[index] = calls / elapsed;
        g_sink = sum;
      });
    }
    for (auto& thread : pool) thread.join();
    double total = 0;
    for (double rate : rates) total += rate;
    best = std::max(best, total);
  }
  return best;
}

// Numbers in [-1, 1): zeros and constants would draw less power and so run faster than real data do.
void fill_random(void* bytes, size_t size, bool bf16) {
  uint32_t state = 2463534242u;
  for (size_t at = 0; at < size; at += bf16 ? 2 : 4) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    const float value = static_cast<int32_t>(state) * (1.0f / 2147483648.0f);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t high = bits >> 16;
    if (bf16) std::memcpy(static_cast<char*>(bytes) + at, &high, 2);
    else std::memcpy(static_cast<char*>(bytes) + at, &value, 4);
  }
}

// ---- multiply-add in registers: 12 independent sums cover latency 4 x 2 ports (with a margin) ------------------------------

constexpr int kSums = 12;

__attribute__((target("avx2,fma"))) float fma_avx2() {
  alignas(32) float data[16];
  fill_random(data, sizeof data, false);
  __m256 a = _mm256_load_ps(data), b = _mm256_load_ps(data + 8), sum[kSums];
  for (auto& s : sum) s = _mm256_setzero_ps();
  for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
      sum[i] = _mm256_fmadd_ps(a, b, sum[i]);
  for (int i = 1; i < kSums; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return _mm256_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"))) float fma_avx512() {
  alignas(64) float data[32];
  fill_random(data, sizeof data, false);
  __m512 a = _mm512_load_ps(data), b = _mm512_load_ps(data + 16), sum[kSums];
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
      sum[i] = _mm512_fmadd_ps(a, b, sum[i]);
  for (int i = 1; i < kSums; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}

// Compilers before GCC 12 and Clang 14 do not know float16.
#if defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 12
constexpr bool kKnowsHalf = true;
__attribute__((target("avx512f,avx512vl,avx512fp16"))) float fma_float16() {
  alignas(64) float data[32];
  fill_random(data, sizeof data, false);
  __m512h operands[2], sum[kSums];
  for (int i = 0; i < 2; ++i) {
    const __m256h half = _mm512_cvtxps_ph(_mm512_load_ps(data + 16 * i));
    operands[i] = _mm512_castpd_ph(_mm512_broadcast_f64x4(_mm256_castph_pd(half)));
  }
  const __m512h a = operands[0], b = operands[1];
  for (auto& s : sum) s = _mm512_setzero_ph();
  for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
      sum[i] = _mm512_fmadd_ph(a, b, sum[i]);
  for (int i = 1; i < kSums; ++i) sum[0] = _mm512_add_ph(sum[0], sum[i]);
  return static_cast<float>(_mm512_cvtsh_h(sum[0]));
}
#else
constexpr bool kKnowsHalf = false;
float fma_float16() { return 0; }
#endif

__attribute__((target("avx512f,avx512bf16"))) float dot_bf16() {
  alignas(64) uint16_t data[64];
  fill_random(data, sizeof data, true);
  const __m512i raw_a = _mm512_load_si512(data), raw_b = _mm512_load_si512(data + 32);
  const __m512bh a = (__m512bh)raw_a, b = (__m512bh)raw_b;
  __m512 sum[kSums];
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
      sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
  for (int i = 1; i < kSums; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}

// ---- AMX tiles: 16 rows of 64 bytes; one product is 16 x 16 x 32 multiply-adds ---------------------------------------------

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

constexpr int kTileBytes = 1024, kBlocks = 8;  // a K-block of 256: 8 tiles of A twice and of B twice, 32 KiB, lie in L1

// Memory clobbers: g++ 12 does not know that these intrinsics read memory.
__attribute__((target("amx-tile,amx-bf16,avx512f"))) void configure_tiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.bytes_per_row[tile] = 64, config.rows[tile] = 16;
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
  asm volatile("" ::: "memory");
}

__attribute__((target("amx-tile,amx-bf16,avx512f"))) inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

__attribute__((target("amx-tile,amx-bf16,avx512f"))) float tiles_in_registers(char* data) {
  configure_tiles();
  zero_sums();
  asm volatile("" ::: "memory");
  _tile_loadd(4, data, 64);
  _tile_loadd(5, data + kTileBytes, 64);
  _tile_loadd(6, data + 2 * kTileBytes, 64);
  _tile_loadd(7, data + 3 * kTileBytes, 64);
  for (int step = 0; step < kSteps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float out[256];
  _tile_stored(0, out, 64);
  asm volatile("" ::: "memory");
  _tile_release();
  return out[0];
}

// The same products, each pair of tiles loaded from the first-level cache: what a whole kernel can hope for.
__attribute__((target("amx-tile,amx-bf16,avx512f"))) float tiles_from_cache(char* data) {
  configure_tiles();
  zero_sums();
  for (int step = 0; step < kSteps; ++step) {
    char* at = data + (step % kBlocks) * 4 * kTileBytes;
    asm volatile("" ::: "memory");
    _tile_loadd(4, at, 64);
    _tile_loadd(6, at + 2 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, at + 3 * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, at + kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float out[256];
  _tile_stored(0, out, 64);
  asm volatile("" ::: "memory");
  _tile_release();
  return out[0];
}

bool has_float16() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return kKnowsHalf && __builtin_cpu_supports("avx512f") && (d & (1u << 23));
}

bool has_amx_bf16() {
#ifdef __linux__
  unsigned a = 7, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const bool tile = d & (1u << 24), bf16 = d & (1u << 22);
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return tile && bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// ---- reading memory: 256 MiB a thread, beyond every cache that matters ------------------------------------------------------

constexpr size_t kReadBytes = size_t{256} << 20;

float read_all(const std::vector<uint64_t>& memory) {
  uint64_t sum[8] = {};
  for (size_t at = 0; at < memory.size(); at += 8)
    for (int i = 0; i < 8; ++i) sum[i] ^= memory[at + i];
  uint64_t all = 0;
  for (uint64_t s : sum) all ^= s;
  return static_cast<float>(all & 1023);
}

void print_figure(const char* name, bool possible, double value) {
  if (possible) std::printf(", \"%s\": %.4g", name, value);
  else std::printf(", \"%s\": null", name);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 1.0;
  if (threads < 1 || !(seconds > 0)) {
    std::fprintf(stderr, "usage: probe THREADS [SECONDS [avx2|avx512|avx512_vnni|avx512_bf16|avx512_fp16]]\n");
    return 2;
  }
  const std::string_view most = argc > 3 ? argv[3] : "";  // as on a processor that has no more than this
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && most != "avx2";
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && most != "avx512" && most != "avx512_vnni";
  const bool half = bf16 && has_float16() && most.substr(0, 11) != "avx512_bf16", amx = most.empty() && has_amx_bf16();
  const auto rate = [&](float (*body)()) { return best_rate(threads, seconds, [&](int) { return Body(body); }); };
  const auto tile_rate = [&](float (*body)(char*)) {
    return best_rate(threads, seconds, [&](int) {
      auto* data = static_cast<char*>(std::aligned_alloc(64, kBlocks * 4 * kTileBytes));  // one a thread, lives to the end
      fill_random(data, kBlocks * 4 * kTileBytes, true);
      return Body([=] { return body(data); });
    });
  };
  // two operations (multiply, add) for each of the lanes of each of the sums of each step
  const double vector_call = 2.0 * kSums * kSteps * 1e-12, tile_call = 2.0 * 4 * 16 * 16 * 32 * kSteps * 1e-12;
  std::printf("{\"threads\": %d", threads);
  const double fma = avx512 ? 16 * rate(fma_avx512) : avx2 ? 8 * rate(fma_avx2) : 0;
  print_figure("fma_float32_tflops", avx2 || avx512, fma * vector_call);
  print_figure("fma_float16_tflops", half, half ? 32 * rate(fma_float16) * vector_call : 0);
  print_figure("dot_bfloat16_tflops", bf16, bf16 ? 32 * rate(dot_bf16) * vector_call : 0);
  print_figure("amx_bfloat16_tflops", amx, amx ? tile_rate(tiles_in_registers) * tile_call : 0);
  print_figure("amx_bfloat16_fed_tflops", amx, amx ? tile_rate(tiles_from_cache) * tile_call : 0);
  std::vector<std::vector<uint64_t>> memory(threads);
  const double reads = best_rate(threads, seconds, [&](int index) {
    if (memory[index].empty()) memory[index].assign(kReadBytes / 8, 1);  // first touched by the thread that reads it
    return Body([&, index] { return read_all(memory[index]); });
  });
  print_figure("read_gb_per_s", true, reads * kReadBytes * 1e-9);
  std::printf("}\n");
  return 0;
}
