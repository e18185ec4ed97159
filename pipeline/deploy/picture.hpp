// A picture in a PPM or PGM file (binary, 8 bits) -> what the model takes, pixel for pixel as Pillow prepares it.
// C++17 and its standard library alone. preprocess.hpp, beside this file, holds the numbers of preprocess.json.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "preprocess.hpp"

struct Picture {
    int width = 0, height = 0, channels = 0;
    std::vector<uint8_t> pixels;  // rows of pixels, the channels of a pixel together
};

inline Picture read_pnm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    auto number = [&file, &path] {  // comments reach from # to the end of their line
        int value = 0;
        while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
        if (!(file >> value) || value < 1 || value > 1 << 16) throw std::runtime_error(path + " is no PPM or PGM file");
        return value;
    };
    std::string magic(2, ' ');
    file.read(&magic[0], 2);
    if (magic != "P5" && magic != "P6") throw std::runtime_error(path + " is no binary PPM or PGM file");
    Picture picture;
    picture.channels = magic == "P6" ? 3 : 1;
    picture.width = number();
    picture.height = number();
    if (number() != 255) throw std::runtime_error(path + " has other than 8 bits a channel");
    file.get();
    picture.pixels.resize(size_t(picture.width) * picture.height * picture.channels);
    file.read(reinterpret_cast<char*>(picture.pixels.data()), std::streamsize(picture.pixels.size()));
    if (size_t(file.gcount()) != picture.pixels.size()) throw std::runtime_error(path + " is cut short");
    return picture;
}

// One grey channel or three, as the model was taught.
inline Picture with_channels(const Picture& given, int channels) {
    if (given.channels == channels) return given;
    Picture made{given.width, given.height, channels, {}};
    made.pixels.reserve(size_t(given.width) * given.height * channels);
    for (size_t at = 0; at < given.pixels.size(); at += size_t(given.channels)) {
        if (channels == 3) {
            made.pixels.insert(made.pixels.end(), 3, given.pixels[at]);
        } else {
            int red = given.pixels[at], green = given.pixels[at + 1], blue = given.pixels[at + 2];
            made.pixels.push_back(uint8_t((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16));
        }
    }
    return made;
}

namespace pillow {

const double PI = 3.14159265358979323846;

inline double support() {
    return KERNEL == Kernel::bicubic ? 2.0 : KERNEL == Kernel::bilinear ? 1.0 : 3.0;
}

inline double sinc(double x) {
    return x == 0.0 ? 1.0 : std::sin(x * PI) / (x * PI);
}

inline double kernel(double x) {
    if (KERNEL == Kernel::lanczos) return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    x = std::abs(x);
    if (KERNEL == Kernel::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
    const double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

struct Weights {
    int first = 0;
    std::vector<int> fixed;  // of 22 bits behind the point
};

// For each new pixel of a side: the first old one that it sees, and its weights.
inline std::vector<Weights> weights(int before, int after) {
    const double scale = double(before) / after, wide = std::max(scale, 1.0);
    std::vector<Weights> made(static_cast<size_t>(after));
    for (int at = 0; at < after; ++at) {
        const double centre = (at + 0.5) * scale;
        const int first = std::max(int(centre - support() * wide + 0.5), 0);
        const int end = std::min(int(centre + support() * wide + 0.5), before);
        std::vector<double> exact;
        double sum = 0;
        for (int from = first; from < end; ++from) {
            exact.push_back(kernel((from - centre + 0.5) * (1.0 / wide)));
            sum += exact.back();
        }
        made[size_t(at)].first = first;
        for (double weight : exact) {
            if (sum != 0.0) weight /= sum;
            made[size_t(at)].fixed.push_back(int((weight < 0 ? -0.5 : 0.5) + weight * (1 << 22)));
        }
    }
    return made;
}

// One side at a time: `stride` is the step from one pixel of it to the next, `lines` how many such lines there are.
inline Picture resize_side(const Picture& given, int after, bool across) {
    const int before = across ? given.width : given.height;
    if (before == after) return given;
    Picture made = given;
    (across ? made.width : made.height) = after;
    made.pixels.resize(size_t(made.width) * made.height * made.channels);
    const std::vector<Weights> table = weights(before, after);
    const int step = across ? given.channels : given.width * given.channels;
    for (int row = 0; row < made.height; ++row) {
        for (int column = 0; column < made.width; ++column) {
            const Weights& mine = table[size_t(across ? column : row)];
            for (int channel = 0; channel < made.channels; ++channel) {
                const int line = across ? row * given.width * given.channels : column * given.channels;
                const uint8_t* from = given.pixels.data() + line + mine.first * step + channel;
                int sum = 1 << 21;
                for (const int weight : mine.fixed) {
                    sum += *from * weight;
                    from += step;
                }
                const size_t to = (size_t(row) * made.width + column) * made.channels + channel;
                made.pixels[to] = uint8_t(std::clamp(sum >> 22, 0, 255));
            }
        }
    }
    return made;
}

}  // namespace pillow

// The shorter side to SHORTER, the longer one in proportion, rounded down: across first, then down.
inline Picture resize(const Picture& given) {
    const int longer = int(double(SHORTER) * std::max(given.width, given.height) / std::min(given.width, given.height));
    const bool upright = given.width <= given.height;
    const Picture across = pillow::resize_side(given, upright ? SHORTER : longer, true);
    return pillow::resize_side(across, upright ? longer : SHORTER, false);
}

// Half of what is over, a half rounded to the even number.
inline int margin(int over) {
    return over % 2 ? over / 2 + over / 2 % 2 : over / 2;
}

inline Picture crop(const Picture& given) {
    const int top = margin(given.height - HEIGHT), left = margin(given.width - WIDTH);
    Picture made{WIDTH, HEIGHT, given.channels, {}};
    for (int row = 0; row < HEIGHT; ++row) {
        const auto from = given.pixels.begin() + (ptrdiff_t(row + top) * given.width + left) * given.channels;
        made.pixels.insert(made.pixels.end(), from, from + ptrdiff_t(WIDTH) * given.channels);
    }
    return made;
}

// One picture of the model's input: float32 [channels, HEIGHT, WIDTH], normalised, or bytes as they are.
inline std::vector<Element> prepare(const std::string& path) {
    const Picture picture = crop(resize(with_channels(read_pnm(path), CHANNELS)));
    std::vector<Element> made(picture.pixels.size());
    if (TAKES_BYTES) {
        std::copy(picture.pixels.begin(), picture.pixels.end(), made.begin());
        return made;
    }
    const size_t plane = size_t(HEIGHT) * WIDTH;
    for (size_t at = 0; at < plane; ++at) {
        for (size_t channel = 0; channel < size_t(CHANNELS); ++channel) {
            const float pixel = float(picture.pixels[at * CHANNELS + channel]) / 255.0f;
            made[channel * plane + at] = Element((pixel - MEAN[channel]) / STD[channel]);
        }
    }
    return made;
}

// The five likeliest classes of one picture's logits: softmax is not applied in the model.
inline std::string told(const float* logits, size_t classes, const std::vector<std::string>& labels) {
    std::vector<size_t> order(classes);
    for (size_t at = 0; at < classes; ++at) order[at] = at;
    const size_t top = std::min<size_t>(5, classes);
    std::partial_sort(order.begin(), order.begin() + ptrdiff_t(top), order.end(),
                      [logits](size_t one, size_t other) { return logits[one] > logits[other]; });
    double sum = 0;
    for (size_t at = 0; at < classes; ++at) sum += std::exp(double(logits[at]) - logits[order[0]]);
    std::string text;
    for (size_t at = 0; at < top; ++at) {
        const size_t number = order[at];
        const std::string name = number < labels.size() ? labels[number] : "class " + std::to_string(number);
        const double percent = 100 * std::exp(double(logits[number]) - logits[order[0]]) / sum;
        text += (at ? ", " : "") + name + " " + std::to_string(percent).substr(0, 5) + "%";
    }
    return text;
}

inline std::vector<std::string> read_labels(const std::string& path) {
    std::ifstream file(path);
    std::vector<std::string> labels;
    for (std::string line; std::getline(file, line);) labels.push_back(line);
    return labels;
}
