// Convolution as a product: the windows of a block of output pixels are gathered into rows, and these multiplied by the
// packed weight while they are in L2. All rows together, pixels x K, are never in memory.
#include <algorithm>

#include "conv.h"
#include "cpu/rows.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kBlockRows = 192;  // rows gathered at a time
constexpr int64_t kTallRows = 48;    // rows for each thread from which splitting them pays
constexpr int64_t kSpanPanels = 16;  // panels whose tile of results stays in L2 until it is transposed

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// memcpy of a few bytes without a call: two moves that may overlap.
template <class Word>
inline void copy_ends(uint8_t* out, const uint8_t* in, int64_t n) {
  Word first, last;
  memcpy(&first, in, sizeof first);
  memcpy(&last, in + n - static_cast<int64_t>(sizeof last), sizeof last);
  memcpy(out, &first, sizeof first);
  memcpy(out + n - static_cast<int64_t>(sizeof last), &last, sizeof last);
}

inline void copy_run(uint8_t* out, const uint8_t* in, int64_t n) {
  struct Sixteen {
    uint64_t low, high;
  };
  if (n > 32) {
    memcpy(out, in, static_cast<size_t>(n));
  } else if (n >= 16) {
    copy_ends<Sixteen>(out, in, n);
  } else if (n >= 8) {
    copy_ends<uint64_t>(out, in, n);
  } else if (n >= 4) {
    copy_ends<uint32_t>(out, in, n);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = in[i];
  }
}

class WindowProduct {
 public:
  explicit WindowProduct(const ConvChunk& chunk) : chunk_(chunk), args_(chunk.args), image_(chunk.image) {
    const bool joined = args_.groups == 1 && args_.dilation_w == 1;  // a row of a window is adjacent
    run_bytes_ = joined ? args_.kernel_w * channels_ : channels_;
    runs_ = joined ? 1 : args_.kernel_w;
    // A window of one pixel is a row of A as it lies in the image.
    in_place_ = args_.groups == 1 && k_ == channels_ && args_.stride_h == 1 && args_.stride_w == 1;
  }

  // Work is split by rows and by groups, and by columns where that is not enough: then each share gathers for itself, which
  // takes less time than waiting for one another.
  void run() {
    const int64_t rows = chunk_.count * pixels_, tile = kernels().gemm->tile_m, panels = panels_of(n_);
    const int64_t row_shares = std::clamp<int64_t>(rows / kTallRows, 1, chunk_.threads);
    const int64_t wanted = std::min(strips_of(n_), divide_up(chunk_.threads, row_shares * args_.groups));
    const int64_t share_panels = round_up(divide_up(panels, wanted), kStripPanels);
    const int64_t column_shares = divide_up(panels, share_panels);  // none is empty
    const int64_t share = divide_up(rows, row_shares);
    const int64_t block = round_up(divide_up(share, divide_up(share, kBlockRows)), tile);
    const int64_t blocks = divide_up(rows, block);
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / (column_shares * args_.groups) * block;
        const int64_t group = i / column_shares % args_.groups, panel = i % column_shares * share_panels;
        multiply(group, first, std::min(block, rows - first), panel, std::min(panel + share_panels, panels));
      }
    };
    parallel_for(blocks * args_.groups * column_shares, 1, chunk_.threads, body);
  }

 private:
  // Output pixels [first, first + rows) by panels [begin, end) of a group.
  void multiply(int64_t group, int64_t first, int64_t rows, int64_t begin, int64_t end) const {
    const PackedView packed(static_cast<const char*>(args_.weight) + group * args_.packed_nbytes);
    const int64_t stride = in_place_ ? channels_ : staged_stride(k_);
    const uint8_t* a = image_.data + first * channels_;
    if (!in_place_) {
      auto* gathered = static_cast<uint8_t*>(scratch(Slot::rows, round_up(rows, kRowAlign) * stride));
      gather(group, first, rows, gathered, stride);
      a = gathered;
    }
    Epilogue e = pixel_epilogue(chunk_, first, rows, group * n_, n_);
    e.colsum = packed.colsum;
    e.offset = 128;
    for (int64_t panel = begin; panel < end; panel += kSpanPanels) {
      const int64_t last = std::min(panel + kSpanPanels, end);
      gemm_packed({a, stride, rows, n_, k_, nullptr, panel, last, e}, packed);
      store_planes(chunk_, e, first, rows, group * n_, panel * kPanelN, std::min(last * kPanelN, n_));
    }
  }

  void gather(int64_t group, int64_t first, int64_t rows, uint8_t* out, int64_t stride) const {
    const int64_t line_step = args_.dilation_h * image_.row_bytes();
    const int64_t run_step = args_.dilation_w * image_.channels;
    int64_t sample = first / pixels_, y = first % pixels_ / args_.out_width, x = first % args_.out_width;
    for (int64_t i = 0; i < rows; ++i, out += stride) {
      const uint8_t* line = image_.data + sample * image_.sample_bytes() +
                            y * args_.stride_h * image_.row_bytes() + x * args_.stride_w * image_.channels +
                            group * channels_;
      uint8_t* target = out;
      for (int64_t ky = 0; ky < args_.kernel_h; ++ky, line += line_step) {
        const uint8_t* run = line;
        for (int64_t j = 0; j < runs_; ++j, run += run_step, target += run_bytes_)
          copy_run(target, run, run_bytes_);
      }
      // The weights are 0 beyond k, but what meets them should not depend on earlier calls.
      memset(target, 0, static_cast<size_t>(padded_k(k_) - k_));
      if (++x == args_.out_width) {
        x = 0;
        if (++y == args_.out_height) y = 0, ++sample;
      }
    }
  }

  const ConvChunk& chunk_;
  const ConvArgs& args_;
  const ConvImage& image_;
  const int64_t channels_ = args_.channels / args_.groups, n_ = args_.n / args_.groups;  // of a group
  const int64_t k_ = args_.kernel_h * args_.kernel_w * channels_;
  const int64_t pixels_ = args_.out_height * args_.out_width;
  int64_t run_bytes_, runs_;  // adjacent bytes of a window's row, and how often
  bool in_place_;
};

}  // namespace

void multiply_windows(const ConvChunk& chunk) { WindowProduct(chunk).run(); }

}  // namespace octavo
