// Classify pictures on ONNX Runtime's C++ interface: with model.ort.onnx where it lies here, or else with model.onnx.
//
//   g++ -std=c++17 -O2 classify.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o classify
//   ./classify picture.ppm
//
// Pictures are binary PPM or PGM files of 8 bits; from another format, by Pillow:
//
//   python -c "from PIL import Image; Image.open('a.jpg').convert('RGB').save('a.ppm')"

#include <onnxruntime_cxx_api.h>

#include <array>
#include <filesystem>
#include <iostream>
#include <iterator>

#include "picture.hpp"

// An x86 CPU without VNNI adds two 8-bit products in 16 bits; where it cannot be told, the slower way is exact.
bool products_may_saturate() {
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64)
    std::ifstream file("/proc/cpuinfo");
    const std::string flags(std::istreambuf_iterator<char>(file), {});
    return flags.find("avx512_vnni") == std::string::npos && flags.find("avx_vnni") == std::string::npos;
#else
    return false;
#endif
}

int main(int count, char** words) {
    if (count < 2) {
        std::cerr << "usage: " << words[0] << " picture.ppm ...\n";
        return 2;
    }
    try {
        Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "classify");
        Ort::SessionOptions options;
        Settings settings = SESSION_CONFIG;
        const Settings& exact = SESSION_CONFIG_ON_X86_WITHOUT_VNNI;
        if (products_may_saturate()) settings.insert(settings.end(), exact.begin(), exact.end());
        for (const auto& setting : settings) options.AddConfigEntry(setting[0], setting[1]);
        const std::filesystem::path fast = "model.ort.onnx", portable = "model.onnx";
        Ort::Session session(env, (std::filesystem::exists(fast) ? fast : portable).c_str(), options);
        const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const std::vector<std::string> labels = read_labels("labels.txt");
        const std::array<const char*, 1> inputs{INPUT}, outputs{OUTPUT};
        for (int at = 1; at < count; ++at) {
            std::vector<Element> picture = prepare(words[at]);
            Ort::Value given =
                Ort::Value::CreateTensor<Element>(memory, picture.data(), picture.size(), SHAPE.data(), SHAPE.size());
            const std::vector<Ort::Value> answer =
                session.Run(Ort::RunOptions{nullptr}, inputs.data(), &given, 1, outputs.data(), 1);
            const size_t classes = answer[0].GetTensorTypeAndShapeInfo().GetElementCount();
            std::cout << words[at] << ": " << told(answer[0].GetTensorData<float>(), classes, labels) << "\n";
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
